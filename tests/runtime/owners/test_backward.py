"""A backward compares the values that no step has compared since the last one, and all of them in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdp_compile.errors import DistributedError
from sdp_compile.runtime.owners import backward, comparison
from sdp_compile.runtime.owners.parts import SHARES
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, loss_of
from tests.runtime.stub import CYCLIC

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")


class Spy(comparison.Comparison):
    """Notes what is compared in each backward."""

    seen: list[set[str]] = []  # noqa: RUF012

    def __init__(self, items: Any, late: bool) -> None:
        super().__init__(items, late)
        self.seen.append({item.identifier for item in items})


def compared(rank: int, late: bool) -> tuple[list[set[str]], list[set[str]], set[str]]:
    """What backward passes compare between steps of an optimizer, then without steps, and all there is."""
    comparison.LATE = late
    backward.Comparison = Spy  # type: ignore[misc]
    module = connected(rank, CYCLIC)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    phases = []
    for steps in (True, False):
        Spy.seen = []
        for number in range(SHARES + 1):
            optimizer.zero_grad()
            loss_of(module, 100 * rank + number).backward()
            if steps:
                optimizer.step()
        phases.append([found for found in Spy.seen if found])
    everything = {item.identifier for item in backward._checks[module.peers.engine]._items}
    return phases[0], phases[1], everything


def partly(rank: int, late: bool) -> tuple[int, str]:
    """The step at which another value of the one parameter is found that no optimizer steps, and the error."""
    comparison.LATE = late
    module = connected(rank, CYCLIC)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p is not module.down.weight], lr=1e-2)
    for step in range(SHARES + 3):
        optimizer.zero_grad()
        try:
            loss_of(module, 100 * rank + step).backward()
            if step == 1 and rank == 0:
                module.down.weight.data[0, 0] += 1.0
            optimizer.step()
        except DistributedError as error:
            return step, str(error)
    return -1, ""


def both(rank: int) -> Any:
    return [(compared(rank, late), partly(rank, late)) for late in (False, True)]


def test_a_backward_compares_what_no_step_has_compared() -> None:
    found = run_workers(both, WORKERS)
    for late in (False, True):
        for (stepped, alone, everything), (step, error) in (own[late] for own in found):
            assert len(stepped) <= 1, "only the first backward has no step before it"
            assert set().union(*alone) == everything
            assert 2 <= step <= 1 + SHARES + late
            assert error == found[0][late][1][1] and error.startswith("The value of 'down.weight'")
