"""Four processes that share the device train like the original with masked parameters; Gloo carries the gradients."""

from __future__ import annotations

import pytest
import torch

from tests.accelerator.training import CASES, STEPS, run_case
from tests.distributed import run_workers
from tests.runtime.test_end_to_end import WORKERS, check_owners, everything


@pytest.mark.parametrize(
    ("name", "policy"),
    [("transformer", "neuron"), ("cnn", "block"), ("transformer", "backward neuron"), ("cnn", "backward all")],
)
def test_training_equals_the_masked_original(name: str, policy: str, device: torch.device) -> None:
    """Gradients, clipping, accumulation, 20 steps, states of model and optimizer, and the refresh."""
    check_owners(run_workers(everything, WORKERS, name, policy, False, str(device), limit=280))


def test_owners_stay_bitwise_equal(device: torch.device) -> None:
    """Over 20 steps with each optimizer, with loss scaling, clipping and sharded state, in float32 and in float16."""
    results = run_workers(run_all, WORKERS, str(device), limit=280)
    for case in CASES:
        check_owners([result[case][:4] for result in results])
        assert results[0][case][5] < results[0][case][4], f"{case}: the loss does not fall in {STEPS} steps"


def run_all(rank: int, device: str) -> dict[str, object]:
    return {case: run_case(rank, case, torch.device(device)) for case in CASES}
