"""Variables of enclosing functions are found at the function that reads them, quickly and also among its likes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sdp_compile.capture import capture
from sdp_compile.capture.variables import is_capture_entry
from sdp_compile.errors import CaptureError
from sdp_compile.ir.plain import frozen
from sdp_compile.ir.reads import changed_read

Scaled = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[bool], None]]


def scaled(by: float) -> Scaled:
    """Returns a function that scales if it is told to, and one that tells it."""
    on = True

    def scale(h: torch.Tensor) -> torch.Tensor:
        return h * by if on else h

    def turn(value: bool) -> None:
        nonlocal on
        on = value

    return scale, turn


class Scaling(nn.Module):
    def __init__(self, scale: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.layer(x))


def test_of_functions_with_one_code_that_which_ran_is_asked() -> None:
    made = [scaled(2.0), scaled(3.0), scaled(4.0)]
    for number, (scale, turn) in enumerate(made):
        model = Scaling(scale)
        reads = [read for read in capture(model, torch.randn(2, 4)).programs["train"].reads if read.name == "on"]
        assert [read.value for read in reads] == [(bool, True)]
        for other in (*made[:number], *made[number + 1 :]):
            other[1](False)
        assert changed_read(reads, model) is None
        turn(False)
        assert changed_read(reads, model) is reads[0]
        for other in made:
            other[1](True)


def test_functions_are_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scale, _turn = scaled(2.0)
    searched: list[Any] = []
    search = gc.get_referrers

    def counting(*objects: Any) -> list[Any]:
        searched.extend(objects)
        return search(*objects)

    monkeypatch.setattr(gc, "get_referrers", counting)
    capture(Scaling(scale), torch.randn(2, 4))
    capture(Scaling(scale), torch.randn(2, 4))
    assert searched.count(scale.__code__) <= 1  # type: ignore[attr-defined]


def test_functions_made_in_a_call_are_found_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    class Making(Scaling):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale, turn = scaled(2.0)
            turn(x.shape[1] > 2)
            return scale(self.layer(x))

    code = scaled(2.0)[0].__code__  # type: ignore[attr-defined]
    searched: list[Any] = []
    search = gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *objects: (searched.extend(objects), search(*objects))[1])
    capture(Making(print), torch.randn(2, 4))
    assert code not in searched


BY_TYPE: dict[Any, Any] = {}
BY_RANK: dict[Any, Any] = {}
TYPES: set[type] = set()


class Dispatching(nn.Module):
    """Remembers by the type of a tensor what to call for it, as libraries of several frameworks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for tensor in (x, self.scale):
            BY_TYPE.setdefault(type(tensor), torch.relu)
            if (type(tensor), tensor.ndim) not in BY_RANK:
                BY_RANK[type(tensor), tensor.ndim] = torch.tanh
            TYPES.add(type(tensor))
        h: torch.Tensor = BY_TYPE[type(x)](self.layer(x)) * BY_RANK[type(self.scale), 1](self.scale)
        return h


def test_what_is_remembered_by_the_type_of_a_tensor_is_no_change_of_forward() -> None:
    model, x = Dispatching(), torch.randn(2, 4)
    for kept in (BY_TYPE, BY_RANK, TYPES):
        kept.clear()
    with pytest.raises(CaptureError, match="run the model once before compiling it"):
        capture(model, x)
    model(x)
    before = dict(BY_TYPE), dict(BY_RANK), set(TYPES)
    capture(model, x)
    assert (BY_TYPE, BY_RANK, TYPES) == before, "no type of capture stays"


def test_counts_by_the_type_of_a_tensor_are_changes() -> None:
    for counts in (True, False):
        value = 1 if counts else torch.relu
        inside = SimpleNamespace(by_type={FakeTensor: value})
        for held in ({FakeTensor: value}, {"a": {(FakeTensor, 2): value}}, [inside]):
            assert (frozen(held, is_capture_entry) == frozen(held)) is counts
    assert frozen({"a": 1, FakeTensor: torch.relu}, is_capture_entry) == frozen({"a": 1})
    assert frozen([{int, FakeTensor}], is_capture_entry) == frozen([{int}])


class Striding(nn.Linear):
    """Holds the same settings several times, as timm's Hiera does; torch.export copies them."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        stride = (2, 2)
        schedule = [stride] * 3
        self.schedule = schedule
        self.by_block = {block: (schedule[block:], schedule) for block in range(3)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = super().forward(x)
        for first, second in self.schedule:
            h = h * first + second
        return h * len(self.by_block[0][0])


def test_settings_that_are_held_several_times_are_not_changed() -> None:
    capture(Striding(), torch.randn(2, 4))
    pair = [1, 2]
    assert frozen([pair, pair]) == frozen([[1, 2], [1, 2]]) != frozen([[1, 2], [1, 3]])
    loop: list[Any] = [1]
    loop.append(loop)
    assert frozen(loop) == frozen(loop)


class State:
    """What `Registry` knows, which it never changes but replaces, as einx does."""

    def __init__(self, by_types: dict[Any, Any]) -> None:
        self.by_types, self.modules = dict(by_types), set[str]()

    def call_of(self, tensors: tuple[torch.Tensor, ...]) -> tuple[State, Any]:
        state = State(self.by_types)
        return state, state.by_types.setdefault(tuple(map(type, tensors)), torch.tanh)


class Registry:
    def __init__(self) -> None:
        self.state = State({(): Backend(), (int,): Backend()})

    def call_of(self, *tensors: torch.Tensor) -> Any:
        self.state, found = self.state.call_of(tensors)
        return found


class Backend:
    """Has every attribute, a new one each time, and more parts than are compared."""

    def __init__(self) -> None:
        self.names = dict.fromkeys(map(str, range(6000)), 0)

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: None


REGISTRY = Registry()


class Registered(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = REGISTRY.call_of(x, self.weight)(super().forward(x))
        return h


def test_what_an_object_remembers_inside_by_the_types_of_tensors_is_no_change() -> None:
    model, x = Registered(4, 4), torch.randn(2, 4)
    model(x)
    capture(model, x)
    assert list(REGISTRY.state.by_types) == [(), (int,), (torch.Tensor, nn.Parameter)], "no type of capture stays"


class Importing(nn.Linear):
    """Looks at what is imported, and imports something, as libraries of several frameworks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "colorsys" not in sys.modules:
            import colorsys

            assert colorsys
        h: torch.Tensor = super().forward(x)
        return h


def test_imports_in_forward_are_no_change_of_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    model, x = Importing(4, 4), torch.randn(2, 4)
    assert len(capture(model, x).programs) == 2


def test_models_with_einops_are_captured() -> None:
    rearrange = pytest.importorskip("einops").rearrange

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h: torch.Tensor = rearrange(self.layer(x), "b n (h d) -> b h n d", h=2)
            return h

    model, x = Heads(), torch.randn(2, 3, 8)
    model(x)
    capture(model, x)
