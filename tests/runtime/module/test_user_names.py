"""The user's modules, parameters and buffers may have any name, also those of our attributes and of torch's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import NeuronPolicy, SDPError, SDPModule, sdp_compile
from tests.oracle import randomise
from tests.runtime.module.small import assert_same, compiled

STRANGE = [
    "class",
    "lambda",
    "None",
    'a"b',
    "a'b",
    "a\\b",
    "a b",
    "é",
    "0",
    "self",
    "torch",
    "_constant_0",
    "_run_train_1",
]


def own_names() -> list[str]:
    """The attributes of a compiled module that a plain module does not have."""
    module = compiled(nn.Linear(2, 2), (torch.randn(3, 2),))
    names = {*dir(module), *vars(module)} - {*dir(nn.Module()), "weight", "bias"}
    return sorted(name for name in names if not name.startswith("__"))  # copy and pickle look these up in any object


def all_names() -> list[str]:
    # nn.Module itself could not change modes any more.
    return sorted({*own_names(), *dir(nn.Module()), *STRANGE} - {"training"})


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))


class Named(nn.Module):
    """A module, a parameter or a buffer under each name, put where `nn.Module` keeps them."""

    def __init__(self, names: Iterable[str], kind: str) -> None:
        super().__init__()
        self.names, self.kind = list(names), kind
        self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        for name in self.names:
            if kind == "module":
                self._modules[name] = Scale()
            elif kind == "parameter":
                self._parameters[name] = nn.Parameter(torch.randn(4))
            else:
                self._buffers[name] = torch.randn(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x) + torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
        for name in self.names:
            part: Any = {"module": self._modules, "parameter": self._parameters, "buffer": self._buffers}[self.kind]
            x = x * 0.5 + (part[name].weight if self.kind == "module" else part[name])
        return self.last(x)


class Outer(nn.Module):
    """Has those names one level further inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.plan = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plan(x)


def test_attributes_of_ours_are_among_the_names() -> None:
    assert {"plan", "programs", "graph", "code", "meta", "_run_train", "_caller_eval", "peers", "lowered"} <= {
        *own_names()
    }


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
def test_parts_under_all_names_compute_train_and_copy_as_the_original(kind: str) -> None:
    named = Named(all_names() if kind == "module" else own_names(), kind)
    model = randomise(Outer(named) if kind == "buffer" else named).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    module = compiled(model, (x,))
    assert list(module.state_dict()) == list(model.state_dict())
    assert_same(module, model, lambda called: called(x[:3]))
    module.graph.lint()
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x), module(x))
    module.load_state_dict({name: value * 2 for name, value in model.state_dict().items()}, assign=True)
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    assert_same(module, model, lambda called: called(x))
    for name, parameter in module.named_parameters():
        assert module.get_parameter(name) is parameter
    for name, buffer in module.named_buffers():
        assert module.get_buffer(name) is buffer
    for name, part in module.named_modules():
        assert module.get_submodule(name) is part
    if kind != "module":  # torch cannot export fake tensors under the names of attributes of nn.Module itself
        module.float()
        assert module(x.float()).dtype == torch.float32


@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_workers_hold_their_slices_under_these_names(lowering: Any) -> None:
    model = randomise(Named(own_names(), "module")).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    module = sdp_compile(model, NeuronPolicy(coverage=0.5), (x,), workers=2, rank=0, lowering=lowering)
    whole = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.mul_(module.plan.mask(name, 0))
    torch.testing.assert_close(module(x), whole(x), rtol=1e-9, atol=1e-9)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    module.load_full_state_dict(state)
    for name, value in module.named_parameters():
        mask = module.plan.mask(name, 0)
        held = value if lowering == "sliced" else value[mask]
        assert torch.equal(held.reshape(-1), state[name][mask]), name


def test_torch_compile_finds_parts_under_our_names() -> None:
    model = randomise(Named(own_names(), "module")).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    module = compiled(model, (x,))
    torch._dynamo.reset()
    fast = torch.compile(module, backend="eager")
    assert_same(module, model, lambda called: (fast if called is module else called)(x))


def test_our_attributes_hide_parts() -> None:
    model = nn.Sequential()
    model.add_module("plan", nn.Linear(3, 4))
    model.add_module("peers", nn.Linear(4, 2))
    module = compiled(model, (torch.randn(5, 3),))
    assert isinstance(module, SDPModule) and module.plan.workers == 1
    vars(module)["peers"] = None
    assert module.get_submodule("plan").weight.shape == (4, 3)
    assert set(module.state_dict()) == set(model.state_dict())
    for missing in (module.get_submodule, module.get_parameter, module.get_buffer):
        with pytest.raises(AttributeError, match=r"missing"):
            missing("plan.missing")


class Numbered(nn.Module):
    """Its settings have names of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.number, self.workers, self.mode = nn.Linear(3, 4), 2.0, 3.0, "sum"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.layer(x) * self.number / self.workers
        return result.sum(-1) if self.mode == "sum" else result


def test_settings_with_our_names_count_in_forward_and_leave_ours_alone() -> None:
    model, x = Numbered(), torch.randn(5, 3)
    module = compiled(model, (x,))
    number = module.number
    for name, value in (("number", 7.0), ("workers", 2.0), ("mode", "none")):
        setattr(module, name, value)
        setattr(model, name, value)
        torch.testing.assert_close(module(x), model(x))
    assert module.number == number and module.workers == 1 and module.mode == "train"
    full = module.full_model()
    assert (full.number, full.workers, full.mode) == (7.0, 2.0, "none")
    for name in ("rank", "holdings", "capture", "peers", "lowered", "plan"):
        with pytest.raises(SDPError, match=f"'{name}' cannot be set"):
            setattr(module, name, 5)
    torch.testing.assert_close(module(x), model(x))
