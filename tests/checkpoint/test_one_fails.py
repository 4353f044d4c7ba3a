"""An error on one worker, wherever it comes from, is an error on all at once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sdp_compile.checkpoint import save
from sdp_compile.errors import DistributedError
from tests.checkpoint.training import Run
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(150)

LIMIT = 60.0


class Wrong:
    """A state that cannot be described."""

    def state_dict(self) -> Any:
        raise KeyboardInterrupt


def fails(rank: int, folder: Path, failing: int, where: str) -> tuple[str, float]:
    run = Run("transformer", "neuron", rank)
    run.train(1)
    run.save(folder, 1)
    options: dict[str, Any] = {}
    if rank == failing and where == "items":
        real = save._items
        save._items = lambda *args: [*real(*args), 1 / 0]  # type: ignore[assignment, list-item]
    if rank == failing and where == "interrupted":
        options["scaler"] = Wrong()
    start = time.monotonic()
    with pytest.raises(BaseException) as raised:
        run.save(folder, 2, **options)
    expected = {"items": ZeroDivisionError, "interrupted": KeyboardInterrupt}[where]
    assert isinstance(raised.value, expected if rank == failing else DistributedError)
    return str(raised.value), time.monotonic() - start


@pytest.mark.parametrize("where", ["items", "interrupted"])
@pytest.mark.parametrize("failing", [0, 1])
def test_the_others_learn_of_it_before_the_limit(failing: int, where: str, tmp_path: Path) -> None:
    words = {"items": "ZeroDivisionError", "interrupted": "KeyboardInterrupt"}[where]
    for rank, (text, seconds) in enumerate(run_workers(fails, 3, tmp_path, failing, where, timeout=LIMIT)):
        assert rank == failing or (f"orker {failing} failed in sdp.save_checkpoint(): " in text and words in text)
        assert seconds < LIMIT / 2 * float(os.environ.get("SDP_TEST_PATIENCE", "1"))
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", ".lock"}
