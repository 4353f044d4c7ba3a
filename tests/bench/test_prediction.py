"""The formulas, compared with bytes counted by hand, and their tolerance."""

import pytest
from torch import nn

from sdp_compile.bench.contestant import repeated_blocks
from sdp_compile.bench.formula import Prediction, flops_imbalance, predict_ddp, predict_fsdp2
from tests.bench.models import Block, Residual


def test_ddp_sends_all_gradients_and_broadcasts_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    model[0].bias.requires_grad_(False)
    gradients, buffers = 4 * (15 + 10), 4 * 10 + 8
    assert predict_ddp(model, 4).nbytes == pytest.approx(2 * 3 / 4 * gradients + 3 / 4 * buffers)


def test_fsdp2_gathers_blocks_twice_and_the_root_once() -> None:
    model = Residual(width=8, hidden=12, blocks=2)
    block = 4 * (8 * 12 + 12 + 12 * 8 + 8)
    root = 4 * (8 * 8 + 8 + 2 * 8 + 3 * 8 + 3)
    predicted = predict_fsdp2(model, 4)
    assert predicted.nbytes == pytest.approx(3 / 4 * (2 * block * 3 + root * 2))
    assert predicted.padding == pytest.approx(3 / 4 * 2 * 4 * (8 + 1))  # the head's 3 rows become 4


@pytest.mark.parametrize(("counted", "holds"), [(100, True), (99.1, True), (98.9, False), (110.9, True), (112, False)])
def test_a_count_holds_to_one_percent_beyond_padding(counted: float, holds: bool) -> None:
    assert Prediction(100, padding=10).holds(counted) is holds


def test_the_most_loaded_worker_over_the_mean() -> None:
    assert flops_imbalance([1.0, 2.0, 3.0]) == pytest.approx(1.5)
    assert flops_imbalance([0.0, 0.0]) == 1.0


def test_blocks_are_the_repeated_members_of_containers() -> None:
    model = Residual(blocks=3)
    assert repeated_blocks(model) == list(model.blocks)
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    nested = nn.Sequential(nn.Sequential(Block(2, 2), Block(2, 2)), nn.Sequential(Block(2, 2)))
    assert [type(block) for block in repeated_blocks(nested)] == [Block] * 3


def test_a_model_can_name_its_blocks() -> None:
    model = nn.Sequential(Block(2, 2))
    model._no_split_modules = ["Linear"]  # type: ignore[assignment]
    assert all(isinstance(block, nn.Linear) for block in repeated_blocks(model))
    assert len(repeated_blocks(model)) == 2
