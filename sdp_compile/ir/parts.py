"""The parts of a model, by their paths."""

from __future__ import annotations

from torch import nn


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Returns the part of ``model`` at a path, also if its name is that of an attribute of its parent.

    Raises:
        AttributeError: If there is none.
    """
    module: nn.Module | None = model
    for key in filter(None, path.split(".")):
        module = None if module is None else module._modules.get(key)
    if module is None:
        raise AttributeError(f"{type(model).__name__} has no part {path!r}")
    return module
