"""Objects that the original keeps, such as its configuration, are read and changed on the compiled module."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.capture import python_models as models
from tests.runtime.module.small import assert_same, compiled


class Configured(models.Small):
    """One configuration, which parts of the model keep too, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scale=2.0, use_cache=True, names=["a", "b"])
        self.first.config = self.config

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h.relu() * self.config.scale + len(self.first.config.names)


def test_configurations_can_be_changed() -> None:
    model, x = Configured().double(), torch.randn(4, 5).double()
    module = compiled(model, x)

    def same(programs: int) -> None:
        assert_same(module, model, lambda called: called(x))
        assert len(module._programs.programs) == programs

    same(2)
    same(2)
    assert module.config.use_cache and module.config is module.first.config is not model.config
    same(2)
    model.config.scale = module.config.scale = 3.0
    same(3)
    for each in (module, model):
        each.config.names.append("c")
    same(4)
    assert vars(copy.deepcopy(module).config) == vars(pickle.loads(pickle.dumps(module)).config) == vars(model.config)
    model.config = module.config = SimpleNamespace(scale=5.0, names=[])
    same(5)
    model.config.scale = 6.0
    same(6)
    for name in ("missing", "weight"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(module, name)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_what_is_set_after_a_copy_is_set_in_one(copied: Any) -> None:
    model, x = Configured(), torch.randn(4, 5)
    module = compiled(model, x)
    module.config.scale = 1.0
    other = copied(module)
    module.config.scale = 5.0
    assert other.config.scale == 1.0
    for one in (module, other):
        model.config.scale = one.config.scale
        torch.testing.assert_close(one(x), model(x))
    tempered = models.Tempered()
    module = compiled(tempered, x)
    module.temperature = 0.5
    other = copied(module)
    module.temperature = tempered.temperature = 0.25
    torch.testing.assert_close(module(x), tempered(x))
    tempered.temperature = 0.5
    torch.testing.assert_close(other(x.double().float()), tempered(x))


def test_a_configuration_under_torch_compile() -> None:
    model, x = Configured(), torch.randn(4, 5)
    module = compiled(model, x)
    fast = torch.compile(module, backend="eager", fullgraph=True)
    for scale in (2.0, 0.1, 3.0):
        module.config.scale = model.config.scale = scale
        module.config = module.config
        torch.testing.assert_close(fast(x), model(x))
