"""Owners stay bitwise equal whichever optimizer steps, and optimizers that cannot work on slices are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.probing import elementwise
from sdp_compile.runtime.probing.elementwise import needs_broadcast
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, full_of, loss_of
from tests.runtime.stub import CYCLIC, SCATTERED, batch, capture_of, network, plan_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*calibrate")]


def steps(rank: int, make: str) -> Any:
    module = connected(rank, SCATTERED).to(torch.bfloat16 if make == "sgd_bfloat16" else torch.float32)
    optimizer = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
        "sgd_bfloat16": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        "own": Own,
    }[make](list(module.parameters()))
    dtype = module.up.weight.dtype
    for step in range(20):
        optimizer.zero_grad()
        x, y = batch(100 * rank + step)
        F.cross_entropy(module(x.to(dtype)).float(), y).backward()
        optimizer.step()
    values = {name: p.detach().clone() for name, p in module.named_parameters()}
    states = {
        f"{name}:{key}": value
        for name, p in module.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.shape == p.shape
    }
    return values, states


class Own(torch.optim.SGD):
    """An element-wise optimizer that rounds differently at different positions, as some kernels do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-2, momentum=0.9)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        position = torch.arange(parameter.numel(), dtype=parameter.dtype).reshape(parameter.shape)
                        rounding = torch.finfo(parameter.dtype).eps * (position % 8)
                        parameter.sub_(1e-2 * parameter.grad * (1 + rounding))


class PerNumel(torch.optim.SGD):
    """Its steps are smaller in larger parameters."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad * (1e-3 / parameter.numel()))


@pytest.mark.parametrize("make", ["adamw", "sgd", "fused", "sgd_bfloat16", "own"])
def test_owners_stay_bitwise_equal(make: str) -> None:
    found = run_workers(steps, WORKERS, make)
    plan = plan_of(capture_of(network()), SCATTERED, WORKERS)
    start = network().up.weight.float()[plan.mask("up.weight", 0)]
    assert (found[0][0]["up.weight"].float().reshape(-1) - start).abs().max() > 1e-5
    for which in (0, 1):
        for key in found[0][which]:
            name = key.split(":")[0]
            for piece in plan.pieces(name):
                inside = torch.zeros(plan.state[name].shape, dtype=torch.bool)
                inside[torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij")] = True
                held = [full_of(plan, rank, name, found[rank][which][key])[inside] for rank in piece.owners]
                assert all(torch.equal(held[0], other) for other in held), (key, piece.owners)


def refusals(rank: int) -> None:
    module = connected(rank, CYCLIC)
    loss_of(module, rank).backward()
    lbfgs = torch.optim.LBFGS([p for p in module.parameters() if p.requires_grad])
    with pytest.raises(SDPError, match="LBFGS uses scalar products"):
        lbfgs.step(lambda: loss_of(module, rank))
    weights = [p for p in module.parameters() if p.dim() == 2]
    for name in ("Adafactor", "Muon"):
        with pytest.raises(SDPError, match=name):
            getattr(torch.optim, name)(weights).step()

    class Lamb(torch.optim.SGD):
        pass

    with pytest.raises(SDPError, match="norm of whole parameters"):
        Lamb(weights, lr=0.1).step()
    before = [p.detach().clone() for p in weights]
    with pytest.raises(SDPError, match="PerNumel is not element-wise: it steps a slice of a"):
        PerNumel(weights, lr=0.1).step()
    assert all(torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    other = torch.nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.Adafactor(other.parameters()).step()  # not ours


def test_optimizers_that_need_whole_parameters_are_refused() -> None:
    run_workers(refusals, WORKERS)


def test_which_optimizers_are_trusted() -> None:
    """Fused kernels of the CPU, and momentum in bfloat16, round a tensor's last elements differently."""
    cpu = torch.device("cpu")
    full, half = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()
    assert not needs_broadcast(torch.optim.AdamW(full.parameters()), cpu)
    assert not needs_broadcast(torch.optim.AdamW(full.parameters(), foreach=True), cpu)
    assert not needs_broadcast(torch.optim.AdamW(half.parameters()), cpu)
    assert not needs_broadcast(torch.optim.SGD(full.parameters(), lr=0.1, momentum=0.9), cpu)
    assert needs_broadcast(torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9), cpu)
    assert needs_broadcast(torch.optim.AdamW(full.parameters(), fused=True), cpu)
    assert needs_broadcast(torch.optim.AdamW(half.parameters(), fused=True), cpu)
    assert needs_broadcast(torch.optim.AdamW(full.parameters()), cpu, True)
    assert needs_broadcast(Own(full.parameters()), cpu)


def other_processors(rank: int) -> str:
    """On worker 1 kernels round by position, as on another kind of processor."""
    elementwise.depends_on_position = lambda *args: rank == 1  # type: ignore[assignment]
    module = connected(rank, SCATTERED)
    x, y = batch(rank)
    F.cross_entropy(module(x), y).backward()
    with pytest.raises(DistributedError) as raised:
        torch.optim.AdamW(module.parameters()).step()
    return str(raised.value)


def test_workers_whose_kernels_round_differently() -> None:
    """Else some would broadcast after the step and others not, and all would wait."""
    texts = set(run_workers(other_processors, WORKERS))
    assert len(texts) == 1
    text = texts.pop()
    assert "depends on an element's position is " in text and "True on worker 1" in text and "fused=False" in text


def test_each_kind_of_optimizer_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.dtype] = []

    def counting(optimizer: Any, group: Any, dtype: torch.dtype, setting: Any) -> bool:
        tried.append(dtype)
        return False

    monkeypatch.setattr("sdp_compile.runtime.probing.elementwise.depends_on_position", counting)
    monkeypatch.setattr("sdp_compile.runtime.probing.elementwise._positions", {})
    full, half = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()
    for _ in range(2):
        optimizer = torch.optim.AdamW(full.parameters(), lr=0.1)
        for lr in (0.1, 0.2):
            optimizer.param_groups[0]["lr"] = lr
            assert not needs_broadcast(optimizer, torch.device("cpu"))
    assert tried == [torch.float32]
    assert not needs_broadcast(torch.optim.AdamW(half.parameters()), torch.device("cpu"))
    assert tried == [torch.float32, torch.bfloat16]
    assert not needs_broadcast(torch.optim.AdamW(full.parameters(), weight_decay=0.0), torch.device("cpu"))
    assert tried == [torch.float32, torch.bfloat16, torch.float32]
