"""Reductions that compiled graphs launch: during backward, in order, and never on half of a gradient."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.runtime.gradients import compiled
from tests.distributed import run_workers
from tests.versions import BEFORE_2_12

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.xfail(BEFORE_2_12, reason="torch 2.11 drops the launches from compiled graphs; averages come later"),
]
WORKERS = 2
SIZE = 256


def build() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))]
    return nn.Sequential(*layers).double()


def batch(seed: int, size: int = 4) -> Tensor:
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def penalty(module: nn.Module) -> Tensor:
    return torch.stack([(parameter * parameter.detach().roll(1)).sum() for parameter in module.parameters()]).sum()


class Pair:
    """A compiled module, and the same one in eager mode, which reduces after backward as far as it can tell."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        policy, example = NeuronPolicy(coverage=1.0), (batch(0),)
        self.module = sdp_compile(build(), policy, example, bucket_bytes=SIZE)
        self.eager = sdp_compile(build(), policy, example, bucket_bytes=SIZE)
        self.run = torch.compile(self.module, fullgraph=True, backend="aot_eager")
        self.engine = self.module.peers.engine
        self.during: list[str] = []
        start = self.engine.reduction.start

        def recorded(bucket: Any, flat: Tensor) -> None:
            self.during.append(type(torch._C._current_autograd_node()).__name__)
            start(bucket, flat)

        self.engine.reduction.start = recorded

    def step(self, objective: Any, keep: bool = False) -> set[str]:
        """One backward of both, whose gradients must be the same; where the compiled one's reductions were issued."""
        self.during.clear()
        for module, run in ((self.module, self.run), (self.eager, self.eager)):
            if not keep:
                module.zero_grad()
            objective(module, run).backward()
        for (name, one), other in zip(self.module.named_parameters(), self.eager.parameters(), strict=True):
            assert one.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)
        numbers = [bucket.number for bucket in self.module.plan.buckets(self.rank, SIZE)]
        assert self.engine.issued == numbers and len(numbers) > 2
        return set(self.during)

    def plain(self, seed: int, size: int = 4) -> Any:
        x = batch(100 * self.rank + seed, size)
        return lambda module, run: run(x.to(next(module.parameters()).dtype)).square().mean()


IN_GRAPH = {"CompiledFunctionBackward"}
AT_THE_END = {"NoneType"}


def launched(rank: int) -> None:
    pair = Pair(rank)
    assert pair.step(pair.plain(0)) != IN_GRAPH  # before the workers have agreed
    assert pair.step(pair.plain(1)) == IN_GRAPH
    assert pair.step(pair.plain(2, size=3)) == IN_GRAPH
    assert pair.step(pair.plain(3), keep=True) == IN_GRAPH  # on top of what is there
    for module, run in ((pair.module, pair.run), (pair.eager, pair.eager)):
        with module.no_sync():
            pair.plain(4)(module, run).backward()
    assert pair.step(pair.plain(5), keep=True) == IN_GRAPH
    # Gradients that are not accumulated are not reduced.
    pair.during.clear()
    torch.autograd.grad(pair.plain(6)(pair.module, pair.run), list(pair.module.parameters()))
    assert not pair.during
    # Parameters of another dtype are others to autograd.
    for module in (pair.module, pair.eager):
        module.to(torch.float32)
        module.to(torch.float64)
    pair.step(pair.plain(7))
    assert pair.step(pair.plain(8)) == IN_GRAPH


def test_compiled_graphs_launch_what_they_have() -> None:
    run_workers(launched, WORKERS, limit=200)


def other_uses(rank: int, what: str) -> None:
    pair = Pair(rank)
    for seed in range(2):
        found = pair.step(pair.plain(seed))
    assert found == IN_GRAPH
    handles: list[Any] = []

    def objective(module: Any, run: Any) -> Tensor:
        loss = pair.plain(2)(module, run)
        if what == "penalty":
            loss = loss + penalty(module)
        elif what == "two calls":
            loss = loss + pair.plain(3)(module, run)
        elif what == "a penalty on one worker" and rank == 1:
            loss = loss + module.get_parameter("8.bias").square().sum()
        elif what == "hook" and not handles:
            handles.extend(m.get_parameter("8.bias").register_hook(lambda g: g * 2) for m in (pair.module, pair.eager))
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair.step(objective)
    assert any("other uses" in str(warning.message) for warning in caught)
    assert pair.step(objective) != IN_GRAPH
    for handle in handles:
        handle.remove()
    assert pair.step(pair.plain(4)) != IN_GRAPH


@pytest.mark.parametrize("what", ["penalty", "two calls", "a penalty on one worker", "hook"])
def test_other_uses_of_the_parameters_are_noticed(what: str) -> None:
    run_workers(other_uses, WORKERS, what, limit=200)


def generated(rank: int) -> Any:
    from torch._inductor.utils import run_and_get_code

    x = batch(rank)
    module = sdp_compile(build(), NeuronPolicy(coverage=1.0), (x,), bucket_bytes=SIZE)
    run = torch.compile(module, fullgraph=True)

    def step() -> None:
        run(x).square().sum().backward()

    _, codes = run_and_get_code(step)
    order = [int(number) for code in codes for number in re.findall(r"sdp_compile\.launch\.default\(.*, (\d+)\)", code)]
    backward = next(code for code in codes if "sdp_compile.launch" in code)
    calls = re.findall(r"launch\.default|extern_kernels\.(?:add)?mm", backward)
    step()
    return (
        order,
        calls,
        [bucket.number for bucket in module.plan.buckets(rank, SIZE)],
        list(module.peers.engine.issued),
    )


def test_the_generated_code_launches_between_the_layers_and_all_is_issued_in_order() -> None:
    for order, calls, numbers, issued in run_workers(generated, WORKERS, limit=200):
        assert sorted(order) == numbers == issued
        last = len(calls) - 1 - calls[::-1].index("extern_kernels.mm")
        assert calls[:last].count("launch.default") > len(numbers) // 2


def test_nothing_is_launched_while_a_cuda_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay would repeat the collective of one call."""
    launches: list[int] = []

    class Engine:
        def launch(self, number: int, gradients: Any) -> None:
            launches.append(number)

    class OnCard:
        is_cuda = True

    engine = Engine()
    compiled.launched_by(-1, engine)
    for is_recording in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda answer=is_recording: answer)
        assert compiled._is_recorded([OnCard()]) is is_recording  # type: ignore[list-item]
        monkeypatch.setattr(compiled, "_is_recorded", lambda _, answer=is_recording: answer)
        torch.ops.sdp_compile.launch([torch.ones(1)], -1, int(is_recording))
        monkeypatch.undo()
    assert launches == [0]
