"""Changes of a compiled model count, or are refused with what to do; none is silently ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from sdp_compile.errors import SDPError
from tests.oracle import randomise
from tests.runtime.module.small import assert_same, compiled

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 8)])
        self.bn, self.act, self.drop = nn.BatchNorm1d(8), F.relu, nn.Sequential(nn.Dropout(0.0))
        self.last = lambda x: x * 2

    def between(self, x: torch.Tensor) -> torch.Tensor:
        extra = getattr(self, "extra", 0.0)
        return self.drop(self.act(x)) + extra  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.bn(self.between(self.layers[1](self.layers[0](x)))))


def pair() -> tuple[Any, Any]:
    model: Any = randomise(Net().double())
    return compiled(model, X), model


def call(model: nn.Module) -> Any:
    torch.manual_seed(0)
    return model(X)


WORKING: dict[str, Callable[[Any], Any]] = {
    "rate in a container": lambda model: setattr(model.drop[0], "p", 0.5),
    "momentum": lambda model: setattr(model.bn, "momentum", 0.7),
    "eps": lambda model: setattr(model.bn, "eps", 0.3),
    "function": lambda model: setattr(model, "act", F.gelu),
    "lambda": lambda model: setattr(model, "last", lambda x: x * 3),
    "what was missing": lambda model: setattr(model, "extra", 2.0),
    "frozen": lambda model: model.layers[0].requires_grad_(False),
    "weight": lambda model: nn.init.constant_(model.layers[0].weight, 0.3),
    "parameter of the same shape": lambda model: setattr(model.bn, "bias", nn.Parameter(torch.ones(8).double())),
}


@pytest.mark.parametrize("name", WORKING)
def test_what_counts(name: str) -> None:
    module, model = pair()
    before, _ = call(module), call(model)
    for each in (module, model):
        WORKING[name](each)
    assert_same(module, model, call)
    assert name in ("frozen", "momentum") or not torch.equal(call(module), before)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "module": (lambda model: setattr(model, "bn", nn.Identity()), "Part 'bn' of a compiled model cannot be replaced"),
    "no module": (lambda model: setattr(model, "bn", None), "Part 'bn' of a compiled model cannot be replaced"),
    "shape": (
        lambda model: setattr(model.bn, "bias", nn.Parameter(torch.ones(3))),
        r"'bn.bias' cannot become a tensor \[3\]",
    ),
    "no parameter": (lambda model: setattr(model.bn, "bias", None), "'bn.bias' cannot become a NoneType"),
    "buffer": (lambda model: setattr(model.bn, "running_mean", torch.ones(3)), "'bn.running_mean' cannot become"),
    "removed module": (lambda model: delattr(model, "bn"), "'bn' of a compiled model cannot be removed"),
    "removed number": (lambda model: delattr(model.bn, "eps"), "'bn.eps' of a compiled model cannot be removed"),
    "append": (lambda model: model.layers.append(nn.ReLU()), "Part 'layers' of a compiled model cannot get or lose"),
    "insert": (lambda model: model.layers.insert(0, nn.ReLU()), "Part 'layers' of a compiled model cannot get or lose"),
    "item": (lambda model: model.layers.__setitem__(0, nn.ReLU()), "Part 'layers' of a compiled model cannot get"),
    "removed item": (lambda model: model.layers.__delitem__(0), "Part 'layers' of a compiled model cannot get or lose"),
    "add_module": (lambda model: model.layers.add_module("x", nn.ReLU()), "Part 'layers' of a compiled model cannot"),
    "tensor": (lambda model: setattr(model, "extra", torch.ones(3)), "'extra' cannot become a Tensor"),
    "method": (lambda model: setattr(model, "between", lambda x: x), "'between' is code of the original model"),
    "forward": (lambda model: setattr(model.bn, "forward", lambda x: x), "'bn.forward' cannot be set"),
    "class": (lambda model: setattr(model.bn, "__class__", nn.Identity), "'bn.__class__' cannot be set"),
    "weight norm": (lambda model: parametrizations.weight_norm(model.layers[0]), "'layers.0.weight' of a compiled"),
}


def test_what_is_refused() -> None:
    module, model = pair()
    for name, (change, message) in REFUSED.items():
        with pytest.raises(SDPError, match=message):
            change(module)
            pytest.fail(name)
    assert_same(module, model, call)


def test_an_attribute_that_nothing_asks_for_captures_nothing() -> None:
    module, model = pair()
    call(module), call(model)
    version = module._programs.state.version
    for step in range(3):
        module.step, module.notes = step, [step]
        assert_same(module, model, call)
    assert module.step == 2 and module._programs.state.version == version
    assert list(module._programs.programs) == ["train", "eval"]
    del module.step
    assert not hasattr(module, "step")
