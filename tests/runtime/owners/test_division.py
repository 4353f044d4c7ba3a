"""The groups of an optimizer, divided for a step by the learning rates that follow owners."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from tests.runtime.owners.test_rates import FULL, HALF, WORKERS, schedule


@pytest.fixture
def model() -> sdp.Emulation:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return sdp.emulate(original, schedule(0.5, HALF), (torch.randn(2, 6).double(),), workers=WORKERS)


def step(model: sdp.Emulation, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(3, 6, dtype=torch.float64, generator=generator) for _ in range(WORKERS)]
    model.zero_grad()
    model.backward(batches, lambda worker, inputs: worker(inputs).pow(2).mean())
    optimizer.step()


class Descent(torch.optim.Optimizer):
    """Gradient descent that does what it is told to at the end of a step."""

    def __init__(self, parameters: Any, after: Callable[[dict[str, Any]], None], **defaults: Any) -> None:
        super().__init__(parameters, {"lr": 0.5, **defaults})
        self.after = after

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                one -= group.get("lr", 1.0) * one.grad
            self.after(group)


def changes(model: sdp.Emulation, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Runs a step, and returns the learning rate that each parameter has had."""
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    step(model, optimizer)
    return {name: ((before[name] - one).norm() / one.grad.norm()).item() for name, one in model.named_parameters()}


EXPECTED = {"0.weight": 0.5**1.5, "0.bias": 0.5**1.5, "2.weight": 0.5**1.5, "2.bias": 0.5}


def test_a_step_that_fails_changes_no_group(model: sdp.Emulation) -> None:
    def fail(group: dict[str, Any]) -> None:
        group["seen"] = group.get("seen", 0) + 1
        raise RuntimeError("out of memory")

    optimizer = Descent(model.parameters(), fail)
    before = optimizer.state_dict()["param_groups"]
    (own,) = optimizer.param_groups
    with pytest.raises(RuntimeError, match="out of memory"):
        step(model, optimizer)
    assert optimizer.state_dict()["param_groups"] == before
    assert optimizer.param_groups == [own] and optimizer.param_groups[0] is own and own["lr"] == 0.5
    optimizer.after = lambda group: None
    assert changes(model, optimizer) == pytest.approx(EXPECTED)


def test_hooks_of_the_user_see_and_change_the_optimizer_itself(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    seen: list[Any] = []

    def before(one: Any, args: Any, kwargs: Any) -> Any:
        one.count = getattr(one, "count", 0) + 1
        one.param_groups[0]["lr"] = 0.5 * one.count
        return (one, *args[1:]), kwargs

    def after(one: Any, args: Any, kwargs: Any) -> None:
        one.count = getattr(one, "count", 0) + 10
        seen.append((one is optimizer, len(one.param_groups), one.param_groups[0]["lr"]))

    optimizer.register_step_post_hook(after)
    first = changes(model, optimizer)
    optimizer.register_step_pre_hook(before)  # after our own
    second = changes(model, optimizer)
    third = changes(model, optimizer)
    assert first == pytest.approx(EXPECTED)
    assert second == pytest.approx({name: 11 * rate for name, rate in EXPECTED.items()})
    assert third == pytest.approx({name: 22 * rate for name, rate in EXPECTED.items()})
    assert seen == [(True, 1, 0.5), (True, 1, 5.5), (True, 1, 11.0)] and optimizer.count == 32  # type: ignore[attr-defined]


class Wrapper(torch.optim.Optimizer):
    """Has the groups of another optimizer, which it steps."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.state = inner, inner.state
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self._patch_step_function()

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.inner.param_groups = groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.last = None
        self.inner.step()


class Sharing(torch.optim.SGD):
    """Steps another optimizer of the same groups, as SAM does."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, lr=1.0)
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.last = None
        self.inner.step()


@pytest.mark.parametrize("wrapper", [Wrapper, Sharing])
def test_wrappers_of_optimizers(model: sdp.Emulation, wrapper: Any) -> None:
    inner = Descent(model.parameters(), lambda group: None)
    optimizer = wrapper(inner)
    for _ in range(2):
        assert changes(model, optimizer) == pytest.approx(EXPECTED)
        assert len(inner.param_groups) == 1 and inner.param_groups[0]["lr"] == 0.5
        assert "last" in vars(optimizer)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_may_set_the_rate(model: sdp.Emulation, by_name: bool) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def closure() -> Tensor:
        optimizer.param_groups[0]["lr"] = 0.25
        model.zero_grad()
        batches = [torch.randn(3, 6).double() for _ in range(WORKERS)]
        return model.backward(batches, lambda worker, inputs: worker(inputs).pow(2).mean()).mean()

    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    found = {name: ((before[name] - one).norm() / one.grad.norm()).item() for name, one in model.named_parameters()}
    assert found == pytest.approx({name: rate / 2 for name, rate in EXPECTED.items()})


class Twice(torch.optim.SGD):
    """Steps twice: by its base class, and itself."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for one in group["params"]:
                one -= group["lr"] * one.grad
        self.steps = getattr(self, "steps", 0) + 1
        self.own = self.helper  # a method of the stand-in, for a moment

    def helper(self) -> int:
        return len(self.param_groups)


def test_steps_that_call_those_of_a_base_class(model: sdp.Emulation) -> None:
    optimizer = Twice(model.parameters(), lr=0.5)
    optimizer.own = optimizer.helper  # type: ignore[method-assign]
    for number in range(1, 4):
        assert changes(model, optimizer) == pytest.approx({name: 2 * rate for name, rate in EXPECTED.items()})
        assert optimizer.steps == number and len(optimizer.param_groups) == 1
        assert optimizer.own() == 1  # type: ignore[attr-defined]


def copies(model: sdp.Emulation) -> dict[str, sdp.Emulation]:
    return {
        "deep": copy.deepcopy(model),
        "shallow": copy.copy(model),
        "pickled": pickle.loads(pickle.dumps(model)),
    }


@pytest.mark.parametrize("kind", ["deep", "shallow", "pickled"])
def test_copies_of_an_emulation_keep_its_rates(model: sdp.Emulation, kind: str) -> None:
    one = copies(model)[kind]
    assert changes(one, Descent(one.parameters(), lambda group: None)) == pytest.approx(EXPECTED)


def test_options_that_each_step_changes_stay_with_the_group(model: sdp.Emulation) -> None:
    def count(group: dict[str, Any]) -> None:
        group["steps"] = group.get("steps", 0) + 1

    optimizer = Descent(model.parameters(), count)
    before = optimizer.state_dict()
    for number in range(1, 4):
        assert changes(model, optimizer) == pytest.approx(EXPECTED)
        (own,) = optimizer.param_groups
        assert own["steps"] == number and own["lr"] == 0.5 and len(own["params"]) == 4
    optimizer.load_state_dict(before)
    step(model, optimizer)
    assert optimizer.param_groups[0]["steps"] == 1


@pytest.mark.parametrize("kind", ["by what it holds", "in place", "list", "tensor", "rate"])
def test_options_that_a_step_computes_from_a_group_are_refused(model: sdp.Emulation, kind: str) -> None:
    def change(group: dict[str, Any]) -> None:
        if kind == "by what it holds":
            group["distance"] = sum(one.norm().item() for one in group["params"])
        elif kind == "in place":
            group["count"].add_(1)
        elif kind == "list":
            group["list"].append(1)
        elif kind == "tensor":
            group["number"] = torch.randn(3)
        else:
            group["lr"] *= 0.9

    optimizer = Descent(model.parameters(), change, count=torch.zeros(()), list=[], number=0)
    with pytest.raises(sdp.SDPError, match="rate_by_owners"):
        step(model, optimizer)
    assert len(optimizer.param_groups) == 1


def test_an_optimizer_without_a_rate_is_refused(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(sdp.SDPError, match="'lr'"):
        step(model, optimizer)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(sdp.SDPError, match="'lr'"):
        step(model, optimizer)


def test_a_group_of_others_needs_no_rate(model: sdp.Emulation) -> None:
    other = nn.Parameter(torch.ones(3, dtype=torch.float64))
    other.grad = torch.ones_like(other)
    optimizer = Descent([{"params": list(model.parameters())}, {"params": [other]}], lambda group: None)
    del optimizer.param_groups[1]["lr"]
    assert changes(model, optimizer) == pytest.approx(EXPECTED)
    assert other.tolist() == [0, 0, 0]


def test_an_optimizer_with_a_finaliser_is_refused(model: sdp.Emulation) -> None:
    class Finalised(Descent):
        def __del__(self) -> None:
            pass

    with pytest.raises(sdp.SDPError, match="finaliser"):
        step(model, Finalised(model.parameters(), lambda group: None))


def test_groups_of_the_user_and_parameters_of_others(model: sdp.Emulation) -> None:
    other = nn.Parameter(torch.ones(3, dtype=torch.float64))
    other.grad = torch.ones_like(other)
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first, other], "lr": 0.25}, {"params": rest}, {"params": []}]
    optimizer = Descent(groups, lambda group: None)
    found = changes(model, optimizer)
    assert found == pytest.approx({**EXPECTED, "0.weight": 0.25 * 0.5**0.5})
    torch.testing.assert_close(other.detach(), torch.full_like(other, 0.75))


def test_a_schedule_that_is_set_or_changed_later(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    assert changes(model, optimizer) == pytest.approx(EXPECTED)
    model.schedule = schedule(1.0, HALF)
    assert changes(model, optimizer) == pytest.approx({**EXPECTED, **dict.fromkeys(list(EXPECTED)[:3], 0.25)})
    model.replan(FULL)
    assert changes(model, optimizer) == pytest.approx(dict.fromkeys(EXPECTED, 0.5))
    model.schedule = None
    model.replan(HALF)
    assert changes(model, optimizer) == pytest.approx(dict.fromkeys(EXPECTED, 0.5))


def test_optimizers_are_not_kept_alive(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    step(model, optimizer)
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None


def test_steps_that_are_compiled_are_compiled_once(model: sdp.Emulation) -> None:
    compiled = 0

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.step = torch.compile(optimizer.step, backend=counting)  # type: ignore[method-assign]
    for number in range(12):
        assert changes(model, optimizer) == pytest.approx(EXPECTED)
        if number == 2:
            after_some = compiled
    assert compiled == after_some > 0
