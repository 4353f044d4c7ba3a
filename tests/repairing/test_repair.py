"""Bits that flip on one owner: no checkpoint is written, and the other owners repair them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.repairing.faults import WORKERS, Run, equal_bits, message_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore:.*calibrate")]


def names_of(level: str) -> tuple[str, str]:
    """A parameter that is cut, and one that all workers share."""
    return ("layers.0.up.weight", "norm.weight") if level == "neuron" else ("branches.1.conv1.weight", "stem.weight")


def three_owners(rank: int, folder: Path, level: str, masking: str, lowering: str) -> None:
    run, (cut, shared) = Run(rank, level, masking, 3, lowering), names_of(level)
    run.train(2)
    first = run.save(folder, 2)
    good = run.bits()

    def refused(*words: str) -> None:
        text = message_of(lambda: run.save(folder, 3))
        assert all(word in text for word in (*words, "Nothing was saved", str(first))), text
        assert [path.name for path in folder.iterdir() if path.name[0] != "."] == [first.name]

    def repaired(*expected: tuple[str, str, tuple[int, ...], int]) -> None:
        done = run.model.repair(run.optimizer)
        found = [(one.parameter, one.state, one.workers, one.elements) for one in done.repaired]
        assert sorted(found) == sorted(expected), done
        assert equal_bits(run.bits(), good)
        assert all(one.parameter in one.what for one in done.repaired) and not done.without_copies

    repaired()  # nothing to do
    for name, owners in ((cut, None), (shared, WORKERS)):
        for state, at, bit in (("", 0, 0), ("exp_avg", 2, 63), ("exp_avg_sq", 1, 40)):
            worker = run.flip(name, state, at, 1, bit, owners)
            refused(name, f"{'worker ' + str(worker)}", state or "The value of")
            repaired((name, state, (worker,), 1))

    # Several at once: two states and two values, on other owners each.
    one = run.flip(cut, "exp_avg", 0, 0)
    two = run.flip(cut, "", 1, 1)
    three = run.flip(shared, "exp_avg_sq", 0, 3, owners=WORKERS)
    refused("differs between")
    repaired((cut, "exp_avg", (one,), 1), (cut, "", (two,), 1), (shared, "exp_avg_sq", (three,), 1))

    # Two of three owners are damaged, in different elements: each has a majority.
    one, two = run.flip(cut, "", 0, 0), run.flip(cut, "", 3, 2)
    repaired((cut, "", tuple(sorted((one, two))), 2))

    # In the same element: nobody knows, and what could be repaired stays, too.
    run.flip(cut, "", 0, 0, bit=5)
    run.flip(cut, "", 0, 2, bit=6)
    run.flip(shared, "", 0, 2, owners=WORKERS)
    damaged = run.bits()
    text = message_of(lambda: run.model.repair(run.optimizer))
    assert re.search(rf"{re.escape(cut)}.* no value of 1 of its elements", text) and "Nothing was changed" in text, text
    assert equal_bits(run.bits(), damaged)
    run.flip(cut, "", 0, 0, bit=5)
    run.flip(cut, "", 0, 2, bit=6)
    run.flip(shared, "", 0, 2, owners=WORKERS)
    assert equal_bits(run.bits(), good)

    # A count of steps belongs to all owners of any part.
    if rank == 2:
        run.tensor(shared, "step").add_(4)
    refused("'step'", shared, "worker 2")
    repaired((shared, "step", (2,), 1))

    # Infinite on one owner, and on all.
    worker = run.flip(cut, "exp_avg_sq", 0, 1, bit=62)
    refused(cut)
    repaired((cut, "exp_avg_sq", (worker,), 1))
    for name, state in ((cut, ""), (shared, "exp_avg")):
        owners = None if name == cut else WORKERS
        kept = run.bits()
        run.set(name, math.nan, state, owners)
        refused("Not finite", name, state or "the value of", "workers ")
        text = message_of(lambda: run.model.repair(run.optimizer))
        assert "nothing to repair it from" in text and name in text
        for key, tensor in run.tensors():
            tensor.copy_(kept[key])

    run.train(2)  # finds no difference, though one was reported
    run.save(folder, 4)
    expected = Run(rank, level, masking, 3, lowering)
    expected.train(4)
    assert equal_bits(run.bits(), expected.bits())


@pytest.mark.parametrize(
    ("level", "masking", "lowering"),
    [("neuron", "forward", "sliced"), ("neuron", "backward", "masked"), ("block", "backward", "sliced")],
)
def test_most_of_the_owners_repair_the_others(level: str, masking: str, lowering: str, tmp_path: Path) -> None:
    run_workers(three_owners, WORKERS, tmp_path, level, masking, lowering, limit=250)
