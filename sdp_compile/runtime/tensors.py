"""The tensors that a module holds, by name; and operators without what costs time and is of no use here."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn


def local_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a module under all of their names."""
    result: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    result.update(module.named_buffers(remove_duplicate=False))
    return result


class NamedParameters:
    """The parameters of a module under all of their names, listed again only when a part of it holds others.

    Args:
        module: The module, which is not kept alive.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._found: dict[str, nn.Parameter] = {}
        self._parts: list[tuple[dict[str, Any], tuple[Any, ...]]] = []

    def __call__(self) -> dict[str, nn.Parameter]:
        """Returns the parameters by name, in the same dictionary while they are the same; none without the module."""
        module = self._module()
        if module is None:
            return {}
        if not self._parts or not self._are_current():
            self._found = dict(module.named_parameters(remove_duplicate=False))
            parts = [part for _, part in module.named_modules(remove_duplicate=False)]
            registries = [registry for part in parts for registry in (part._modules, part._parameters)]
            self._parts = [(registry, tuple(registry.values())) for registry in registries]
        return self._found

    def _are_current(self) -> bool:
        return all(
            len(registry) == len(held) and all(map(is_, registry.values(), held)) for registry, held in self._parts
        )


def replace_tensors(module: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Replaces the tensors with the given names, everywhere that the module holds the same tensor."""
    tensors = local_tensors(module)
    by_identity = {id(tensors[name]): value for name, value in new.items()}
    for child in module.modules():
        for registry in (child._parameters, child._buffers):
            for key, tensor in registry.items():
                if tensor is not None and id(tensor) in by_identity:
                    registry[key] = by_identity[id(tensor)]  # type: ignore[assignment]


_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
"""What relates views to each other, and counts changes."""


class untracked:
    """Context for copies between tensors: operators skip autograd, and Python where gradients would pass through it.

    What is changed here needs `torch.autograd.graph.increment_version` if autograd knows it.
    """

    def __enter__(self) -> None:
        self._contexts = (
            torch._C.DisableTorchFunctionSubclass(),
            torch._C._AutoDispatchBelowAutograd(),
            torch._C._ExcludeDispatchKeyGuard(_VIEWS),
        )
        self._grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *_: object) -> None:
        for context in reversed(self._contexts):
            context.__exit__(None, None, None)
        torch._C._set_grad_enabled(self._grad)
