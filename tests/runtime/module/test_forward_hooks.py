"""Forward hooks that are registered on parts of a compiled model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import plan as sdp_plan
from sdp_compile import sdp_compile
from sdp_compile.checking.compare import deviations
from sdp_compile.errors import CaptureError, SDPError
from tests.oracle import randomise, run_compiled, run_original
from tests.runtime.module.small import assert_same, compiled

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(5, 8), Scaled(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.act(self.up(x), scale=3))
        return out


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, scale: int = 2) -> torch.Tensor:
        return x.relu() * scale


def make() -> Any:
    return randomise(Net().double())


HOOKS: dict[str, Callable[[Any], Any]] = {
    "output": lambda model: model.act.register_forward_hook(lambda m, args, output: output * 2),
    "input": lambda model: model.down.register_forward_pre_hook(lambda m, args: (args[0] + 1,)),
    "keywords": lambda model: model.act.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {"scale": kwargs["scale"] + 1}), with_kwargs=True
    ),
    "first": lambda model: (
        model.up.register_forward_hook(lambda m, args, output: output * 2),
        model.up.register_forward_hook(lambda m, args, output: output + 1, prepend=True),
    ),
    "always": lambda model: model.up.register_forward_hook(
        lambda m, args, kwargs, output: output - m.bias, with_kwargs=True, always_call=True
    ),
    "root": lambda model: model.register_forward_hook(lambda m, args, output: output * 2),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_counts_from_the_next_call_on(name: str) -> None:
    model = make()
    module = compiled(model, X)
    assert_same(module, model, lambda each: each(X))
    before = module(X)
    handles = [HOOKS[name](each) for each in (module, model)]
    assert not torch.equal(module(X), before)
    assert_same(module, model, lambda each: each(X))
    module.eval(), model.eval()
    assert_same(module, model, lambda each: each(X))
    for handle in handles:
        for one in handle if isinstance(handle, tuple) else (handle,):
            one.remove()
    module.train(), model.train()
    torch.testing.assert_close(module(X), before)
    assert sum(name.startswith("train") for name in module._programs.programs) <= 2, "the first graph serves again"


def test_workers_compute_what_the_masked_original_does() -> None:
    model = make()
    plan = sdp_plan(model, "neuron", X, workers=2)
    modules: list[Any] = [sdp_compile(model, "neuron", X, workers=2, rank=rank) for rank in range(2)]
    for each in (model, *modules):
        each.act.register_forward_hook(lambda m, args, output: output * output)
    for rank, module in enumerate(modules):
        expected = run_original(model, (X,), {}, lambda name, rank=rank: plan.mask(name, rank))
        names = {name for name, _ in module.named_parameters()}
        for deviation in deviations(run_compiled(module, (X,), {}), expected, plan, rank, names, set()):
            assert deviation.error < 1e-9, f"rank {rank}: {deviation}"


class Collector:
    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None

    def hook(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self.found.append(output)

    def keep(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self.last = output


class CallableCollector(Collector):
    __call__ = Collector.hook


COLLECTING: dict[str, Callable[[Collector], Any]] = {
    "list": lambda collector: lambda m, args, output: collector.found.append(output),
    "method": lambda collector: collector.hook,
    "attribute": lambda collector: collector.keep,
    "object": lambda collector: collector,
    "partial": lambda collector: partial(Collector.hook, collector),
}


@pytest.mark.parametrize("name", COLLECTING)
@pytest.mark.parametrize("late", [True, False])
def test_a_hook_that_collects_is_refused_with_its_line(name: str, late: bool) -> None:
    collector, model = CallableCollector() if name == "object" else Collector(), make()
    hook = COLLECTING[name](collector)
    if not late:
        model.act.register_forward_hook(hook)
        with pytest.raises(CaptureError, match=r"test_forward_hooks\.py"):
            compiled(model, X)
    else:
        module: Any = compiled(model, X)
        handle = module.act.register_forward_hook(hook)
        with pytest.raises(CaptureError, match=r"forward hooks of module 'act'\..*test_forward_hooks\.py"):
            module(X)
        handle.remove()
        torch.testing.assert_close(module(X), model(X))
    assert not collector.found and collector.last is None


def test_copies_have_hooks_of_their_own() -> None:
    model = make()
    module: Any = compiled(model, X)
    first = module.act.register_forward_hook(lambda m, args, output: output * 2)
    doubled = module(X)
    made = copy.deepcopy(module)
    torch.testing.assert_close(made(X), doubled)
    first.remove()
    torch.testing.assert_close(module(X), model(X))
    torch.testing.assert_close(made(X), doubled)


def test_hooks_under_torch_compile() -> None:
    model = make()
    module: Any = compiled(model, X)
    fast: Any = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(X), model(X))
    for _ in range(2):
        handles = [each.act.register_forward_hook(lambda m, args, output: output * 2) for each in (module, model)]
        torch.testing.assert_close(fast(X), model(X))
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(fast(X), model(X))


@pytest.mark.parametrize(
    "name", ["register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"]
)
def test_backward_hooks_are_refused(name: str) -> None:
    module: Any = compiled(make(), X)
    with pytest.raises(SDPError, match="'act' of a compiled model cannot have a backward hook"):
        getattr(module.act, name)(lambda *_: None)
