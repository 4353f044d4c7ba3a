"""A run that is stopped and resumed: with the same plan bit by bit, elsewhere with the same full state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore:.*calibrate")]

WORKERS = 4


def uninterrupted(rank: int, folder: Path, name: str, kind: str, sharded: bool, lowering: str, options: Any) -> None:
    torch.manual_seed(100 + rank)
    run = Run(name, kind, rank, sharded, lowering)
    run.train(3)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    place = run.save(folder, 3, **options)
    assert place == folder / "step-00000003"
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    losses = run.train(3)
    expected = run.state(), torch.rand(3)
    local = {key: value.clone() for key, value in run.model.state_dict().items()}
    del run  # a model has one ShardedOptimizer

    torch.manual_seed(7)
    resumed = Run(name, kind, rank, sharded, lowering, seed=5)
    resumed.train(1)
    restored = resumed.load(folder)
    assert (restored.path, restored.step, restored.samples) == (place, 3, 40)
    assert restored.extra == {"best": (1, 0.5)} and restored.same_workers and restored.workers == WORKERS
    assert resumed.train(3) == losses
    found = resumed.state(), torch.rand(3)
    same(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    if lowering == "sliced":  # else there are elements that nobody reads
        for key, value in resumed.model.state_dict().items():
            assert torch.equal(value, local[key]), key


@pytest.mark.parametrize(
    ("name", "kind", "sharded", "lowering", "options"),
    [
        ("transformer", "neuron", False, "sliced", {}),
        ("transformer", "neuron", True, "sliced", {}),
        ("transformer", "neuron", True, "sliced", {"redundancy": "owners"}),
        ("transformer", "neuron-backward", True, "sliced", {}),
        ("transformer", "neuron", False, "masked", {"redundancy": "owners"}),
        ("cnn", "block", False, "sliced", {}),
        ("cnn", "neuron", True, "sliced", {}),
        ("cnn", "block-backward", False, "sliced", {}),
    ],
)
def test_the_same_plan_goes_on_bit_by_bit(
    name: str, kind: str, sharded: bool, lowering: str, options: Any, tmp_path: Path
) -> None:
    run_workers(uninterrupted, WORKERS, tmp_path, name, kind, sharded, lowering, options)
