"""Code that asks a compiled model about itself sees the original's tree, types and settings."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile import sdp_compile
from sdp_compile.errors import SDPError
from tests.oracle import randomise
from tests.runtime.module.small import assert_same, compiled

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()


class Base(nn.Module):
    kind = "base"
    ignored = ("a", "b")

    def helper(self) -> str:
        return "of the base"


class Tree(Base):
    """All kinds of containers, and methods of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.LayerNorm(5), nn.ReLU()])
        self.named = nn.ModuleDict({"up": nn.Linear(5, 8), "down": nn.Linear(8, 5, bias=False)})
        self.head = nn.Sequential(OrderedDict(norm=nn.LayerNorm(5), out=nn.Linear(5, 2)))
        self.scales = nn.ParameterList([torch.ones(5), torch.ones(5)])
        self.pairs = nn.ParameterDict({"x": torch.ones(2), "y": torch.ones(2)})
        self.act, self.limit = F.relu, 3

    def forward(self, x: torch.Tensor, *, offset: float = 0.0) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.named["down"](self.act(self.named["up"](x))) * self.scales[0] * self.scales[1]
        out: torch.Tensor = self.head(x) * self.pairs["x"] + self.pairs["y"] + offset
        return out

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def norm(self) -> torch.Tensor:
        return self.head[1].weight.norm()

    @cached_property
    def depth(self) -> int:
        return len(self.layers)

    @staticmethod
    def static() -> int:
        return 7

    @classmethod
    def of(cls) -> str:
        return cls.__name__

    def no_weight_decay(self) -> set[str]:
        return {"scales.0"}

    def helper(self) -> str:
        return "the tree " + super().helper()

    def get_output(self) -> nn.Module:
        return self.head[-1]

    def trained(self) -> Iterator[nn.Parameter]:
        for layer in self.layers:
            yield from layer.parameters()

    def freeze(self) -> Tree:
        for parameter in self.head.parameters():
            parameter.requires_grad = False
        self.layers.eval()
        self.limit = 4
        return self

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.named["up"].weight.T

    def features(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        return out


def pair() -> tuple[Any, Any]:
    model: Any = randomise(Tree().double())
    return compiled(model, X), model


def test_types_and_names() -> None:
    module, model = pair()
    kinds = {path: type(each) for path, each in model.named_modules()}
    for path, part in module.named_modules():
        if path:
            assert isinstance(part, kinds[path]) and part.__class__ is kinds[path]
            assert type(part).__name__ == kinds[path].__name__ and repr(part) == repr(model.get_submodule(path))
    assert not isinstance(module.layers, nn.Sequential) and not isinstance(module.head, nn.ModuleList)
    seen: list[str] = []
    module.apply(lambda part: seen.append(type(part).__name__) if isinstance(part, nn.Linear) else None)
    assert seen == ["Linear"] * 4


def test_containers() -> None:
    module, model = pair()
    assert len(module.layers) == 3 and module.layers[0] is module.get_submodule("layers.0")
    assert [*module.layers] == [module.layers[0], module.layers[1], module.layers[-1]]
    assert [*module.layers[1:]] == [module.layers[1], module.layers[2]]
    assert list(module.named) == ["up", "down"] and module.named["up"] is module.named.up and "up" in module.named
    assert [key for key, _ in module.named.items()] == ["up", "down"] and len(list(module.named.values())) == 2
    assert module.head[0] is module.head.norm and len(module.head) == 2 and len(module.head[:1]) == 1
    assert len(module.scales) == 2 and torch.equal(module.scales[1], model.scales[1])
    assert list(module.pairs) == ["x", "y"] and torch.equal(module.pairs["x"], model.pairs["x"])
    assert bool(module.act) and bool(module.layers[0]), "a part that is no container has no length"


def test_a_model_that_is_a_container() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    module: Any = compiled(model, X)
    assert len(module) == 3 and module[-1] is module.get_submodule("2") and isinstance(module[1], nn.ReLU)
    assert [type(each).__name__ for each in module] == ["Linear", "ReLU", "Linear"] and len(module[1:]) == 2
    assert_same(module, model, lambda each: each(X))
    with pytest.raises(SDPError, match="cannot get or lose modules"):
        module[0] = nn.Linear(5, 8)
    with pytest.raises(SDPError, match="cannot get or lose modules"):
        module.append(nn.ReLU())


def test_methods_and_properties_that_look_at_the_model() -> None:
    module, model = pair()
    assert module.device == model.device and module.depth == 3 and module.static() == 7 and module.of() == "Tree"
    assert module.no_weight_decay() == {"scales.0"} and module.helper() == model.helper() == "the tree of the base"
    assert module.get_output() is module.head[1] and module.ignored == ("a", "b") and module.kind == "base"
    assert [id(one) for one in module.trained()] == [id(one) for one in module.layers.parameters()]
    assert module.act is F.relu
    assert module.freeze() is module and model.freeze() is model
    assert module.limit == 4 and not module.layers[0].training
    assert_same(module, model, lambda each: each(X))
    assert module.head[1].weight.grad is None is model.head[1].weight.grad


def test_what_computes_is_refused() -> None:
    module, _ = pair()
    with pytest.raises(SDPError, match=r"encode\(\) of Tree needs the whole weights \(aten::.*test_tree\.py"):
        module.encode(X)
    with pytest.raises(SDPError, match=r"features\(\) of Tree .*it calls part 'head'.*methods=\('features',\)"):
        module.features(X)
    with pytest.raises(SDPError, match=r"Part 'named\.up' of a compiled model cannot be called"):
        module.named["up"](X)
    assert not hasattr(module, "norm") and hasattr(module, "encode") and not hasattr(module, "nothing")
    with pytest.raises(SDPError, match="norm of Tree needs the whole weights"):
        _ = module.norm
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_the_signature_is_the_original_s() -> None:
    module, model = pair()
    assert inspect.signature(module.forward) == inspect.signature(model.forward)
    assert list(inspect.signature(type(module).forward).parameters) == ["self", "x", "offset"]


def test_a_tensor_that_other_workers_own() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 2), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.down(self.up(x).relu())
            return out

    modules: list[Any] = [sdp_compile(Experts(), "neuron", X.float(), workers=4, rank=rank) for rank in range(4)]
    lacking = [module for module in modules if module.up._parameters.get("weight") is None]
    for module in lacking:
        assert not hasattr(module.up, "weight")
        with pytest.raises(SDPError, match="holds nothing of 'weight'"):
            _ = module.up.weight
    assert all(module.get_submodule("up") is module.up for module in modules)


def test_what_is_none_in_the_original() -> None:
    module, _ = pair()
    assert module.named.down.bias is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_part_can_be_copied_alone(copied: Any) -> None:
    module, _ = pair()
    made = copied(module.layers[0])
    assert isinstance(made, nn.Linear) and type(made) is type(module.layers[0])
    assert torch.equal(made.weight, module.layers[0].weight) and made.in_features == 5


def test_under_torch_compile() -> None:
    module, model = pair()
    fast: Any = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(X), model(X))
    torch.testing.assert_close(fast(X), model(X))
    assert len(fast.layers) == 3 and fast.no_weight_decay() == {"scales.0"}


class WithExtra(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 4)
        self.scale = 2.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.scale

    def get_extra_state(self) -> float:
        return self.scale

    def set_extra_state(self, state: float) -> None:
        self.scale = state


def test_extra_state_of_a_part() -> None:
    model: Any = nn.Sequential(WithExtra(), nn.Linear(4, 2)).double()
    module: Any = compiled(model, X)
    assert module.state_dict()["0._extra_state"] == 2.0 and module.state_dict().keys() == model.state_dict().keys()
    for each in (module, model):
        each.load_state_dict({**each.state_dict(), "0._extra_state": 3.0})
    assert_same(module, model, lambda each: each(X))


def test_a_tree_that_is_walked_and_put_together_again() -> None:
    module, _ = pair()
    assert nn.SyncBatchNorm.convert_sync_batchnorm(module) is module
    normalised: Any = compiled(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double(), X)
    with pytest.raises(SDPError, match="cannot get or lose modules"):
        nn.SyncBatchNorm.convert_sync_batchnorm(normalised)


def test_parameter_groups_of_timm() -> None:
    import timm
    from timm.optim import create_optimizer_v2

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, depth=1, num_classes=4)
    module = sdp_compile(model, "neuron", torch.randn(2, 3, 32, 32), workers=2, rank=0)

    def groups(each: nn.Module) -> dict[str, tuple[float, float]]:
        names = {id(parameter): name for name, parameter in each.named_parameters()}
        optimizer = create_optimizer_v2(each, opt="adamw", weight_decay=0.05, layer_decay=0.7)
        return {
            names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    assert groups(module) == groups(model) and len(set(groups(model).values())) > 3
