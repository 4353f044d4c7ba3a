"""What the original's code reads besides tensors, such as sizes and settings: each call gets the graph for it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import plan as sdp_plan
from sdp_compile import sdp_compile
from sdp_compile.errors import CaptureError, SDPError
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.capture import python_models as models
from tests.capture.asserting import finite
from tests.runtime.module.small import assert_same, compiled


class Sizes(models.Small):
    """Takes another path at some sizes."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        if x.shape[1] == 7:
            h = h * 2
        if x.shape[0] == 1:
            h = h - 1
        if y.shape[0] % 3 == 0:
            h = h + y.sum()
        if y.shape[0] != x.shape[0]:
            h = h / 3
        out: torch.Tensor = self.last(h)
        return out


@pytest.fixture(scope="module")
def sizes() -> tuple[SDPModule, nn.Module]:
    model = Sizes().double()
    return compiled(model, (torch.randn(4, 6, 5).double(), torch.randn(5).double())), model


@pytest.mark.parametrize(
    ("x", "y"), [((4, 6), 5), ((4, 7), 5), ((4, 8), 4), ((1, 6), 1), ((1, 7), 3), ((2, 1), 2), ((5, 2), 9), ((4, 6), 1)]
)
def test_sizes_with_another_path(sizes: tuple[SDPModule, nn.Module], x: tuple[int, int], y: int) -> None:
    inputs = torch.randn(*x, 5).double(), torch.randn(y).double()
    assert_same(*sizes, lambda module: module(*inputs))


class Missing(models.Small):
    """Asks for attributes that are not there."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        scale = getattr(self, "scale", 2.0)
        return h * scale if not hasattr(self.first, "groups") else h


def test_what_is_missing_stays_so() -> None:
    model = Missing().double()
    x = torch.randn(4, 5).double()
    module = compiled(model, x)
    assert_same(module, model, lambda module: module(x))
    assert list(module._programs.programs) == ["train", "eval"], "the first graphs serve"


def test_global_variables_of_executed_code() -> None:
    scope: dict[str, Any] = {"__name__": "notebook", "SCALE": 2.0}
    exec("def scaled(h):\n    return h * SCALE", scope)

    class Executed(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            return scope["scaled"](h)

    model = Executed().double()
    x = torch.randn(4, 5).double()
    module = compiled(model, x)
    assert_same(module, model, lambda module: module(x))
    assert len(module._programs.programs) == 2
    scope["SCALE"] = 3.0
    assert_same(module, model, lambda module: module(x))
    assert list(module._programs.programs) == ["train", "eval", "train_1"]


def test_sizes_under_torch_compile() -> None:
    model = Sizes()
    module = compiled(model, (torch.randn(4, 6, 5), torch.randn(5)))
    fast = torch.compile(module, backend="eager", dynamic=True)
    for x, y in (((4, 6), 5), ((4, 7), 5), ((3, 6), 6), ((4, 9), 5), ((1, 6), 4)):
        inputs = torch.randn(*x, 5), torch.randn(y)
        torch.testing.assert_close(fast(*inputs), model(*inputs))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_batch_of_one_under_batch_norm(mode: str) -> None:
    model = nn.BatchNorm1d(5).train(mode == "train")
    module, x = compiled(model, torch.randn(3, 5)), torch.randn(1, 5)
    if mode == "eval":
        torch.testing.assert_close(module(x), model(x))
        return
    with pytest.raises(ValueError, match="more than 1 value per channel") as original:
        model(x)
    with pytest.raises(ValueError, match="more than 1 value per channel") as mine:
        module(x)
    assert isinstance(mine.value, SDPError) and isinstance(mine.value, type(original.value))


class OtherLayer(models.Small):
    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.Linear(5, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.rare(x) if x.shape[0] == 3 else self.first(x))
        return out


def test_a_path_with_parameters_that_the_example_did_not_reach() -> None:
    model = OtherLayer()
    module = sdp_compile(model, "neuron", torch.randn(4, 5), workers=4, rank=0)
    module(torch.randn(5, 5))
    with pytest.raises(
        SDPError, match=r"computes with parameter 'rare\.weight', which the example inputs did not reach"
    ):
        module(torch.randn(3, 5))
    alone = compiled(model, torch.randn(4, 5))
    x = torch.randn(3, 5)
    torch.testing.assert_close(alone(x), model(x))


def test_an_assertion_freezes_nothing() -> None:
    plan = sdp_plan(Asserting(), "neuron", torch.randn(4, 5), workers=4)
    assert [family.units for family in plan.families] == [16]


def test_many_sizes_are_warned_of() -> None:
    class Fixed(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            return h * int(h.shape[0])

    model = Fixed()
    module = compiled(model, torch.randn(2, 5))
    with pytest.warns(UserWarning, match="captured 9 times in train mode"):
        for rows in range(3, 11):
            x = torch.randn(rows, 5)
            torch.testing.assert_close(module(x), model(x))


def test_numbers_can_be_set() -> None:
    model, x = models.Tempered().double(), torch.randn(4, 5).double()
    module = compiled(model, x)
    assert module.temperature == 1.0 and module.first.gain == 1

    def same(one: nn.Module, other: nn.Module) -> None:
        assert_same(one, other, lambda called: called(x))

    same(module, model)
    for each in (module, model):
        each.temperature = 0.1
        each.first.gain = 3
    same(module, model)
    module.eval(), model.eval()
    same(module, model)
    module.temperature = model.temperature = 1.0
    module.first.gain = model.first.gain = 1
    same(module, model)
    assert len(module._programs.programs) == 4, "the first graphs serve again"


def test_a_copy_has_settings_of_its_own() -> None:
    model, x = models.Tempered(), torch.randn(4, 5)
    module = compiled(model, x)
    module.temperature = 0.5
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert made.temperature == 0.5
        made.temperature = 0.25
        torch.testing.assert_close(made(x), module(x) * 2 - module.last.bias)
    assert module.temperature == 0.5 and model.temperature == 1.0


def test_rates_of_submodules_without_tensors() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.0), nn.Linear(6, 2))
    module, x = compiled(model, torch.randn(4, 5)), torch.randn(4, 5)
    for each in (module, model):
        each.get_submodule("1").p = 0.9
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(module(x), expected)


def test_a_setting_under_torch_compile() -> None:
    model, x = models.Tempered(), torch.randn(4, 5)
    module = compiled(model, x)
    fast = torch.compile(module, backend="eager", fullgraph=True)
    for temperature in (1.0, 0.1, 1.0, 2.0):
        module.temperature = model.temperature = temperature
        torch.testing.assert_close(fast(x), model(x))


def test_variables_outside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDP_TEST_SCALE", "2")
    x = torch.randn(4, 5)
    for model in (models.ReadsGlobal(), models.ReadsEnvironment()):
        module = compiled(model, x)
        torch.testing.assert_close(module(x), model(x))
        monkeypatch.setattr(models, "SCALE", 5.0)
        monkeypatch.setenv("SDP_TEST_SCALE", "7")
        torch.testing.assert_close(module(x), model(x))


def test_the_value_of_a_buffer_is_checked() -> None:
    from tests.capture.test_values import Sliced

    model, x = Sliced(), torch.randn(4, 8)
    module = compiled(model, x)
    for start in (2, 0, 5):
        for each in (module, model):
            each.start.fill_(start)
        torch.testing.assert_close(module(x), model(x))


class Asking(models.Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h * 2 if torch.is_grad_enabled() else h
        out: torch.Tensor = self.last(h * 3 if x.requires_grad else h)
        return out


def test_questions_about_gradients() -> None:
    model, x = Asking(), torch.randn(4, 5)
    module = compiled(model, x)
    torch.testing.assert_close(module(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x))
    x.requires_grad_()
    torch.testing.assert_close(module(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x))


def test_an_input_that_is_a_result() -> None:
    class Leaf(models.Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x * 2 if x.is_leaf else x / 3)
            return out if x.grad_fn is None else out + 1

    model, x = Leaf(), torch.randn(4, 5)
    module = compiled(model, x)  # not under torch.compile, which takes one for the other in the original too
    leaf = torch.randn(4, 5, requires_grad=True)
    for given in (x, leaf, leaf.exp(), leaf, x, leaf.exp()[:2]):
        torch.testing.assert_close(module(given), model(given))
    (ours,), (theirs,) = (torch.autograd.grad(each(leaf.exp()).sum(), leaf) for each in (module, model))
    torch.testing.assert_close(ours, theirs)


def test_attributes_that_forward_assigns() -> None:
    model, x = models.Assigning().double(), torch.randn(4, 5).double()
    module = compiled(model, x)
    assert module.auxiliary is None

    def total(each: Any) -> torch.Tensor:
        result: torch.Tensor = each(x).sum() + each.auxiliary + each.parts[1].prod() + each.last.seen["norm"]
        return result

    assert_same(module, model, total)
    torch.testing.assert_close(module.parts, model.parts)
    fast = torch.compile(module, backend="eager")
    x = torch.randn(3, 5).double()
    torch.testing.assert_close(total(fast), total(model))
    torch.testing.assert_close(module.auxiliary, model.auxiliary)


def test_plain_tensors_are_state() -> None:
    model, x = models.Memory().double(), torch.randn(4, 5).double()
    module = compiled(model, x)
    for _ in range(3):
        assert_same(module, model, lambda each: each(x))
    torch.testing.assert_close(module.one, model.one)
    torch.testing.assert_close(module.other, model.other)
    assert "one" not in module.state_dict() and "one" not in model.state_dict()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_detached_weight_follows_its_layer(device: str) -> None:
    model, x = models.Frozen(), torch.randn(4, 5)
    if device == "cpu":
        module = compiled(model, x)
    else:
        with torch.device("meta"):
            bones = models.Frozen()
        module = compiled(bones, x.to("meta")).materialize(model.state_dict())
    for _ in range(2):
        assert_same(module, model, lambda each: each(x))
        for each in (module, model):
            with torch.no_grad():
                each.first.weight.mul_(2)


class Asserting(models.Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        finite(h)
        return h.relu()


@pytest.mark.parametrize("backend", [None, "eager"])
def test_an_assertion_fails_where_the_original_s_does(backend: str | None) -> None:
    model, x = Asserting(), torch.randn(4, 5)
    module: Any = compiled(model, x)
    module = module if backend is None else torch.compile(module, backend=backend)
    torch.testing.assert_close(module(x), model(x))
    with pytest.raises(RuntimeError, match="assertion failed"):
        module(x * float("inf"))


def test_a_setting_that_the_model_does_not_run_with_is_an_error() -> None:
    module = compiled(models.Tempered(), torch.randn(4, 5))
    module.temperature = "hot"
    with pytest.raises(CaptureError, match=r"attribute 'temperature' has changed.*python_models\.py"):
        module(torch.randn(4, 5))
    module.temperature = 1.0
    module(torch.randn(4, 5))
