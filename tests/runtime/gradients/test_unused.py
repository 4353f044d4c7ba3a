"""What no worker has a gradient of is left alone by optimizers, as in the original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from tests.distributed import run_workers

WORKERS = 4
HEADS = ("first", "second")


class TwoHeads(nn.Module):
    """Two heads on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
        self.first = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        self.second = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x + self.down(torch.tanh(self.up(x)))
        return self.first(h), self.second(h)


def built() -> TwoHeads:
    torch.manual_seed(3)
    return TwoHeads().double()


def inputs(step: int) -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(
    model: nn.Module, optimizer: Any, used: list[str], to_none: bool, part: list[Any] | None = None
) -> list[set[str]]:
    """Trains on the heads that are named, of which "both" means a backward for each. Returns what had no gradient."""
    without = []
    for step, name in enumerate(used):
        optimizer.zero_grad(set_to_none=to_none)
        for head in HEADS if name == "both" else (name,):
            loss = model(inputs(step))[HEADS.index(head)].square().mean()
            loss.backward(inputs=part)
        optimizer.step()
        without.append({key for key, parameter in model.named_parameters() if parameter.grad is None})
    return without


SCHEDULES = [["first"] * 4, ["first", "second", "second", "first"], ["second", "both", "first", "second"]]


def along(rank: int, masking: Any, sharded: bool, to_none: bool) -> Any:
    """All workers have the same data, so under backward masking each trains exactly as the original does."""
    found = []
    for used in SCHEDULES:
        model = sdp.sdp_compile(built(), sdp.NeuronPolicy(coverage=0.5, masking=masking), (inputs(0),))
        options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.3}
        optimizer: Any = torch.optim.AdamW(model.parameters(), **options)
        if sharded:
            optimizer = sdp.ShardedOptimizer(model, torch.optim.AdamW, **options)
        without = train(model, optimizer, used, to_none)
        found.append((without, model.full_state_dict()))
    return found


@pytest.mark.parametrize(("sharded", "to_none"), [(False, True), (False, False), (True, True)])
def test_heads_that_are_no_part_of_the_loss_are_not_stepped(sharded: bool, to_none: bool) -> None:
    results = run_workers(along, WORKERS, "backward", sharded, to_none)
    for number, used in enumerate(SCHEDULES):
        original = built()
        expected = train(original, torch.optim.AdamW(original.parameters(), lr=0.05, weight_decay=0.3), used, to_none)
        for found in results:
            without, state = found[number]
            assert without == expected
            for key, value in original.state_dict().items():
                torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9)


def with_forward_masking(rank: int) -> Any:
    model = sdp.sdp_compile(built(), sdp.NeuronPolicy(coverage=0.5), (inputs(0),))
    before = copy.deepcopy(model.full_state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    same = train(model, optimizer, ["first"] * 3, True)
    middle = model.full_state_dict()
    # Each worker has a loss on another head: both have gradients, zeros of half of the workers included.
    mixed = train(model, optimizer, [HEADS[rank % 2]] * 2, True)
    return same, mixed, before, middle


def test_a_head_that_some_worker_uses_is_stepped_by_all_owners() -> None:
    for same, mixed, before, middle in run_workers(with_forward_masking, WORKERS):
        second = {key for key in before if key.startswith("second")}
        assert all(without == second for without in same) and not any(mixed)
        for key, value in middle.items():
            assert torch.equal(value, before[key]) == (key in second)


def of_some(rank: int) -> Any:
    model = sdp.sdp_compile(built(), sdp.NeuronPolicy(coverage=0.5, masking="backward"), (inputs(0),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    part = [parameter for name, parameter in model.named_parameters() if name.startswith("first")]
    return train(model, optimizer, ["first"] * 3, True, part), model.full_state_dict()


def test_a_backward_for_some_parameters_leaves_the_others_alone() -> None:
    original = built()
    part = [parameter for name, parameter in original.named_parameters() if name.startswith("first")]
    expected = train(
        original, torch.optim.AdamW(original.parameters(), lr=0.05, weight_decay=0.3), ["first"] * 3, True, part
    )
    for without, state in run_workers(of_some, WORKERS):
        assert without == expected
        for key, value in original.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9)


class Chain(nn.Module):
    """Residual branches, of which a worker holds some."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


def of_two_models(rank: int) -> Any:
    """Not all workers hold something of the second model's part in the first optimizer, nor in the second optimizer."""
    torch.manual_seed(5)
    heads = sdp.sdp_compile(built(), sdp.NeuronPolicy(coverage=0.5), (inputs(0),))
    chain = sdp.sdp_compile(Chain().double(), sdp.BlockPolicy(coverage=0.5), (inputs(0),))
    starts = [copy.deepcopy(model.full_state_dict()) for model in (heads, chain)]
    mine = dict(chain.named_parameters())
    first = [parameter for name, parameter in mine.items() if name.startswith("branches.0.")]
    second = [parameter for name, parameter in mine.items() if name.startswith("branches.1.")]
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.3}
    wide = torch.optim.AdamW([*heads.parameters(), *first], **options)
    narrow = torch.optim.AdamW(second, **options) if second else None
    trained = [p for name, p in (*heads.named_parameters(), *mine.items()) if not name.endswith("2.bias")]
    for step in range(4):
        for model in (heads, chain):
            model.zero_grad()
        used = HEADS[step // 3]
        loss = heads(chain(inputs(step)))[HEADS.index(used)].square().mean()
        loss.backward(inputs=trained)  # no worker has a gradient of the biases at the ends of branches and heads
        wide.step()
        if narrow is not None:
            narrow.step()
    return bool(first), bool(second), starts, [model.full_state_dict() for model in (heads, chain)]


def test_two_models_of_which_an_optimizer_holds_parts() -> None:
    results = run_workers(of_two_models, WORKERS)
    for part in (0, 1):
        assert {found[part] for found in results} == {True, False}
    for _, _, starts, ends in results:
        for start, end in zip(starts, ends, strict=True):
            for name, value in end.items():
                still = name.endswith("2.bias") or name.startswith(("branches.2", "branches.3"))
                assert torch.equal(value, start[name]) == still, name


def never_zeroed(rank: int) -> tuple[dict[str, Tensor], set[str]]:
    """A head that no loss uses, and gradients that nobody zeroes, with uneven tokens."""
    model: Any = sdp.sdp_compile(built(), sdp.NeuronPolicy(coverage=1.0), (inputs(0),), reduction="tokens")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.3)
    for step in range(4):
        x = inputs(10 * step + rank)[: rank + 1]
        with model.weighted(len(x)):
            model(x)[0].square().mean().backward()
        optimizer.step()
    return model.full_state_dict(), {name for name, parameter in model.named_parameters() if parameter.grad is None}


def test_tokens_and_gradients_that_are_never_zeroed() -> None:
    original, weight = built(), 0
    optimizer = torch.optim.SGD(original.parameters(), lr=0.05, weight_decay=0.3)
    for step in range(4):
        batch = torch.cat([inputs(10 * step + rank)[: rank + 1] for rank in range(2)])
        scaled = original(batch)[0].square().mean() * len(batch)
        for parameter in original.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(weight)
        scaled.backward()
        weight += len(batch)
        for parameter in original.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(weight)
        optimizer.step()
    for state, without in run_workers(never_zeroed, 2):
        assert without == {name for name, parameter in original.named_parameters() if parameter.grad is None}
        for name, value in original.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)
