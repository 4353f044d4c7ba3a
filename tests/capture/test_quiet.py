"""The user's code runs without a trace: random states and output."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch

from sdp_compile.capture.quiet import preserved_rng, quiet


def test_random_states_are_restored_also_after_a_failure() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with pytest.raises(ZeroDivisionError), preserved_rng():
        torch.rand(1), np.random.rand(), random.random()
        raise ZeroDivisionError
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_output_of_an_attempt_appears_only_when_it_succeeds(capsys: Any, caplog: Any) -> None:
    with quiet():
        print("from a forward")
        logging.getLogger("torch.export").error("a whole graph")
    assert capsys.readouterr().out == "from a forward\n" and not caplog.records
    with pytest.raises(ZeroDivisionError), quiet():
        print("from a failed attempt")
        raise ZeroDivisionError
    assert capsys.readouterr().out == ""
    logging.getLogger("torch.export").error("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]
