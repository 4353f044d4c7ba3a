"""Parts in another mode than the model: each call computes what the original does with the same modes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn import functional as F

from sdp_compile import plan as sdp_plan
from sdp_compile import sdp_compile
from sdp_compile.checking.compare import deviations
from sdp_compile.errors import CaptureError, SDPError
from tests.oracle import randomise, run_compiled, run_original, without_randomness
from tests.runtime.module.small import assert_same, compiled


class Net(nn.Module):
    """Frozen or trained BatchNorm, dropout in one part, and a part that asks for its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.9))
        self.asking = Asking()
        self.bn = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.bn(self.asking(self.encoder(x))))
        return out


class Asking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3 if self.training else x


class KeepsFrozen(Net):
    """The usual idiom to keep BatchNorm frozen in training."""

    def train(self, mode: bool = True) -> KeepsFrozen:
        super().train(mode)
        self.bn.eval()
        for module in self.encoder:
            if isinstance(module, nn.BatchNorm1d):
                module.train(False)
        return self


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
Switch = Callable[[nn.Module], Any]


def call(model: nn.Module) -> Any:
    torch.manual_seed(3)
    return model(X)


def _training(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules()}


def _flags(model: Any) -> None:
    for module in model.modules():
        module.training = not isinstance(module, (nn.BatchNorm1d, nn.Dropout))


SWITCHES: dict[str, Switch] = {
    "bn": lambda model: model.bn.eval(),
    "encoder": lambda model: model.encoder.eval(),
    "dropout": lambda model: model.encoder[3].train(False),
    "asking": lambda model: model.asking.eval(),
    "by type": _flags,
    "flag": lambda model: setattr(model.bn, "training", False),
    "part of eval": lambda model: model.eval().encoder.train(),
    "apply": lambda model: model.apply(lambda part: part.eval() if isinstance(part, nn.BatchNorm1d) else None),
}


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, nn.Module]:
    model = randomise(Net().double())
    return compiled(model, X), model


@pytest.mark.parametrize("name", SWITCHES)
def test_a_part_in_another_mode(net: tuple[nn.Module, nn.Module], name: str) -> None:
    module, model = net
    for each in net:
        each.train()
    assert_same(module, model, call)
    for each in net:
        SWITCHES[name](each)
    assert _training(module) == _training(model) and len(set(_training(model).values())) == 2
    assert_same(module, model, call)
    for each in net:
        each.eval()
    assert_same(module, model, call)


def test_modes_that_were_captured_are_not_captured_again() -> None:
    module: Any = compiled(Net().double(), X)
    for _ in range(3):
        module.train()
        module.bn.eval()
        module(X)
        module.train()
        module.head.eval()  # asks for no mode
        module(X)
        module.eval()
        module(X)
    assert list(module._programs.programs) == ["train", "eval", "train_1"]


@pytest.mark.parametrize("kind", [Net, KeepsFrozen])
def test_modes_of_the_original_are_kept(kind: type[Net]) -> None:
    model = randomise(kind().double())
    model.train()
    model.encoder.eval()
    module = compiled(model, X)
    assert _training(module) == _training(model)
    assert_same(module, model, call)
    for step in (True, False, True):
        for each in (module, model):
            each.train(step)
        assert _training(module) == _training(model)
        assert_same(module, model, call)


def test_a_model_whose_train_was_never_called() -> None:
    model = randomise(KeepsFrozen().double())
    module = compiled(model, X)
    assert_same(module, model, call)
    module.train(), model.train()
    assert_same(module, model, call)


class Backbone(nn.Module):
    """A part with a ``train`` of its own, and one whose ``train`` is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.replaced, self.head = KeepsFrozen(), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.replaced.eval()
        self.replaced.train = lambda mode=True: self.replaced  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.replaced(self.frozen(x)))
        return out


def test_parts_with_a_train_of_their_own() -> None:
    model = randomise(Backbone().double())
    module = compiled(model, X)
    for switch in (lambda each: each.train(), lambda each: each.eval(), lambda each: each.frozen.train()):
        for each in (module, model):
            switch(each)
        assert _training(module) == _training(model)
        assert_same(module, model, call)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "full_model"])
def test_copies_keep_the_modes(copied: str) -> None:
    model: Any = randomise(Net().double())
    module: Any = compiled(model, X)
    for each in (module, model):
        each.encoder.eval()
    module(X), model(X)
    made = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda each: pickle.loads(pickle.dumps(each)),
        "full_model": lambda each: each.full_model(),
    }[copied](module)
    assert _training(made) == _training(model)
    made.bn.eval()
    assert _training(module) == _training(model), "each has modes of its own"
    model.bn.eval()
    assert_same(made, model, call)


def test_modes_under_torch_compile() -> None:
    model: Any = randomise(Net().double())
    module: Any = compiled(model, X)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    fast: Any = torch.compile(module, backend=counter, fullgraph=True)
    for _ in range(2):
        for each in (fast, model):
            each.train()
        assert_same(fast._orig_mod, model, lambda each: call(fast if each is module else each))
        for each in (fast, model):
            each.bn.eval()
            each.encoder.eval()
        assert_same(fast._orig_mod, model, lambda each: call(fast if each is module else each))
    assert counter.frame_count == 2


class Merges(nn.Module):
    """Adds a part to its weight for evaluation, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.extra = nn.Linear(5, 8), nn.Parameter(torch.randn(8, 5))

    def train(self, mode: bool = True) -> Merges:
        if mode != self.training:
            self.layer.weight.data += self.extra if not mode else -self.extra
        super().train(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight + self.extra if self.training else self.layer.weight
        return F.linear(x, weight)


def test_a_train_that_changes_weights_is_refused() -> None:
    model = Merges().double()
    before = model.layer.weight.clone()
    with pytest.raises(CaptureError, match=r"its train\(\) or eval\(\) computes with tensors .*test_modes\.py"):
        compiled(model, X)
    assert torch.equal(before, model.layer.weight)


@pytest.mark.parametrize("start", ["bn", "part of eval", None])
def test_workers_with_parts_in_another_mode(start: str | None) -> None:
    """Outputs, gradients and statistics are those of the masked original with the same modes."""
    model: Any = without_randomness(randomise(Net().double()))
    SWITCHES.get(start or "", lambda each: each)(model)
    plan = sdp_plan(model, "neuron", X, workers=2)
    modules: list[Any] = [sdp_compile(model, "neuron", X, workers=2, rank=rank) for rank in range(2)]
    for switch in (lambda each: each, *SWITCHES.values()):
        for each in (model, *modules):
            each.train()
            switch(each)
        for rank, module in enumerate(modules):
            expected = run_original(model, (X,), {}, lambda name, rank=rank: plan.mask(name, rank))
            found = run_compiled(module, (X,), {})
            names = {name for name, _ in module.named_parameters()}
            for deviation in deviations(found, expected, plan, rank, names, set(model.state_dict())):
                assert deviation.error < 1e-9, f"rank {rank}: {deviation}"
    assert modules[0].encoder[0].weight.shape == (4, 5), "the layer is cut"


def test_an_attribute_of_a_part_is_no_mode() -> None:
    module: Any = compiled(Net().double(), X)
    with pytest.raises((ValueError, SDPError)):
        module.encoder.train("yes")


class KeepsADistribution(KeepsFrozen):
    """Has an object with tensors, which are copied when its own ``train()`` first changes a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = torch.distributions.Normal(torch.rand(3), 1 + torch.rand(3))


def test_switching_copies_objects_with_tensors() -> None:
    model = KeepsADistribution().double()
    module = compiled(model, (X,))
    for mode in (False, True):
        assert_same(module.train(mode), model.train(mode), call)
