"""Numbers that forward reads and a training loop changes: one more graph serves all their values, exactly."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import sdp_compile
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.capture.python_models import Small
from tests.oracle import assert_exact, randomise
from tests.runtime.module import number_models as models
from tests.runtime.module.small import compiled

VALUES = (0.45, 0.9, 0.3, 0.2)
Set = Callable[[Any, float], object]


def level(model: Any, value: float) -> None:
    model.level = value


def of_child(model: Any, value: float) -> None:
    model.last.level = value


def rate(model: Any, value: float) -> None:
    model.drop.p = value


def momentum(model: Any, value: float) -> None:
    model.norm.momentum = value


def weights(model: Any, value: float) -> None:
    model.weights[0] = value
    model.weights[1] = value / 3


def several(model: Any, value: float) -> None:
    model.one, model.other = value, value + 0.1


def config(model: Any, value: float) -> None:
    model.config.scale, model.config.rates["low"], model.config.weights[0] = value, value / 3, value + 0.1


def variable(model: Any, value: float) -> None:
    models.BETA = value


FREE: list[tuple[type[Small], Set]] = [
    (models.Temperature, level),
    (models.Weight, of_child),
    (models.Slope, level),
    (models.Alpha, level),
    (models.Epsilon, level),
    (models.Dropout, rate),
    (models.Arithmetic, level),
    (models.Power, level),
    (models.Exponential, level),
    (models.Filled, level),
    (models.Attention, level),
    (models.Momentum, momentum),
    (models.Checkpointed, level),
    (models.Drawn, level),
    (models.Summed, weights),
    (models.Several, several),
    (models.Configured, config),
    (models.Global, variable),
]
BRANCHING: list[tuple[type[Small], Set]] = [(models.Branch, level), (models.Asked, level)]
FIXED = [
    models.Steps,
    models.Typed,
    models.Formatted,
    models.Converted,
    models.Tensor,
    models.Rounded,
    models.Percent,
    models.Compared,
    models.Vanishing,
]


@pytest.fixture(autouse=True)
def beta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BETA", 0.5)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each capture."""
    made: list[None] = []
    original = torch.export.export

    def export(*args: Any, **kwargs: Any) -> Any:
        made.append(None)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", export)
    return made


def assert_equal(module: nn.Module, model: nn.Module, x: torch.Tensor, context: Any = None) -> None:
    """Outputs, gradients and buffers are the same to the last bit."""
    results = []
    for each in (module, model):
        each.zero_grad()
        torch.manual_seed(0)
        with context or contextlib.nullcontext():
            results.append(each(x))
        results[-1].float().sum().backward()
    assert torch.equal(*results) and results[0].dtype is results[1].dtype
    mine = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(mine[name].grad, parameter.grad), name
    for name, buffer in model.named_buffers():
        assert torch.equal(mine[name], buffer), name


def change(value: float, setting: Set, *models: Any) -> None:
    for model in models:
        setting(model, value)


def _count(module: SDPModule) -> int:
    return len(module._programs.programs)


@pytest.mark.parametrize(("kind", "setting"), FREE, ids=lambda value: value.__name__)
def test_one_more_graph_serves_all_values(kind: type[Small], setting: Set) -> None:
    model, x = kind(), torch.randn(6, 5)
    module = compiled(model, x)
    for training in (True, False):
        module.train(training)
        model.train(training)
        for value in VALUES:
            change(value, setting, module, model)
            assert_equal(module, model, x)
    assert list(module._programs.programs) == ["train", "eval", "train_1", "eval_1"]


@pytest.mark.parametrize(("kind", "setting"), BRANCHING, ids=lambda value: value.__name__)
def test_one_graph_for_each_path(kind: type[Small], setting: Set) -> None:
    model, x = kind(), torch.randn(6, 5)
    module = compiled(model, x)
    for value in VALUES:
        change(value, setting, module, model)
        assert_equal(module, model, x)
    assert _count(module) == 4


@pytest.mark.parametrize("kind", FIXED)
def test_what_cannot_be_free_is_captured_again(kind: type[Small], exports: list[None]) -> None:
    model, x = kind(), torch.randn(6, 5)
    module = compiled(model, x)
    for value in VALUES[:3]:
        change(value, level, module, model)
        exports.clear()
        assert_equal(module, model, x)
    assert len(exports) == 1, "it is tried once"
    assert _count(module) == 5


def test_sizes_that_follow_from_a_number(exports: list[None]) -> None:
    model, x = models.Sized(), torch.randn(6, 5)
    module = compiled(model, x)
    for value in (0.51, 0.52, 0.53, 0.3, 0.31, 0.5):
        change(value, level, module, model)
        assert_equal(module, model, x)
    assert _count(module) == 4
    with pytest.warns(UserWarning, match="captured 9 times"):
        for step in range(10):
            change(0.05 + step / 16, level, module, model)
            exports.clear()
            assert_equal(module, model, x)
    assert len(exports) == 1, "it takes another path too often"


def test_fifty_values_cost_one_change(exports: list[None]) -> None:
    model, x = models.Arithmetic(), torch.randn(6, 5)
    module = compiled(model, x)
    exports.clear()
    for step in range(50):
        change(0.9 * 0.97**step, level, module, model)
        assert_equal(module, model, x)
    assert len(exports) == 2


@pytest.mark.parametrize("kind", [models.Slope, models.Exponential, models.Checkpointed])
def test_a_subnetwork_computes_what_the_masked_original_does(kind: type[Small]) -> None:
    model, x = kind().double(), torch.randn(6, 5, dtype=torch.float64)
    randomise(model)
    module = sdp_compile(model, "neuron", x, workers=4, rank=1)
    assert module.plan.families, "it is cut"
    for value in VALUES:
        change(value, level, module, model)
        assert_exact(module, model, module.plan, 1, (x,), {})
    assert _count(module) == 4


@pytest.mark.parametrize("kind", [models.Temperature, models.Arithmetic])
def test_dtypes_and_sizes_have_graphs_of_their_own(kind: type[Small], exports: list[None]) -> None:
    model, x = kind(), torch.randn(6, 5)
    module = compiled(model, x)
    change(0.45, level, module, model)
    assert_equal(module, model, x)
    assert_equal(module, model, x, torch.autocast("cpu", torch.bfloat16))
    for dtype in (torch.float64, torch.bfloat16):
        module.to(dtype)
        model.to(dtype)
        assert_equal(module, model, x.to(dtype))
    exports.clear()
    for value in VALUES[1:]:
        change(value, level, module, model)
        assert_equal(module, model, x.bfloat16())
        assert_equal(module, model, torch.randn(9, 5).bfloat16())
    assert not exports


def test_copies_have_numbers_of_their_own(exports: list[None]) -> None:
    model, x = models.Arithmetic(), torch.randn(6, 5)
    module = compiled(model, x)
    change(0.45, level, module, model)
    assert_equal(module, model, x)
    exports.clear()
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other = copy.deepcopy(model)
        for value in (0.45, 0.8):
            change(value, level, made, other)
            assert_equal(made, other, x)
        assert_equal(module, model, x)
    assert not exports


@pytest.mark.parametrize("kind", [models.Arithmetic, models.Branch])
def test_under_torch_compile(kind: type[Small]) -> None:
    model, x = kind(), torch.randn(6, 5)
    module = compiled(model, x)
    fast = torch.compile(module, backend="eager", fullgraph=True)
    for value in (0.5, 0.45, 0.9, 0.3, 0.45):
        change(value, level, module, model)
        assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan, 1, -0.7, 1e30, "much"])
def test_special_values(value: Any) -> None:
    model, x = models.Slope(), torch.randn(6, 5)
    module = compiled(model, x)
    change(0.45, level, module, model)
    assert_equal(module, model, x)
    change(value, level, module, model)
    if value == "much":
        with pytest.raises(Exception, match="has changed"):
            module(x)
    else:
        torch.testing.assert_close(module(x), model(x), rtol=0, atol=0, equal_nan=True)
    change(0.3, level, module, model)
    assert_equal(module, model, x)
    assert _count(module) <= 4


def test_other_changes_of_a_configuration_are_noticed() -> None:
    model, x = models.Configured(), torch.randn(6, 5)
    module = compiled(model, x)
    for scale, layers in ((0.5, 2), (0.4, 2), (0.3, 2), (0.3, 3), (0.2, 3)):
        for each in (module, model):
            each.config.scale, each.config.layers = scale, layers
        assert_equal(module, model, x)
    assert list(module._programs.programs) == ["train", "eval", "train_1", "train_2"]


def test_a_number_that_two_modules_share_no_longer() -> None:
    model, x = models.Configured(), torch.randn(6, 5)
    module = compiled(model, x)
    change(0.4, config, module, model)
    assert_equal(module, model, x)
    for each in (module, model):
        each.last.config = copy.deepcopy(each.config)
        each.last.config.scale = 0.9
    assert_equal(module, model, x)
