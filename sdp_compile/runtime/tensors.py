"""The tensors that a module holds, by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def local_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a module under all of their names."""
    result: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    result.update(module.named_buffers(remove_duplicate=False))
    return result


def replace_tensors(module: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Replaces the tensors with the given names, everywhere that the module holds the same tensor."""
    tensors = local_tensors(module)
    by_identity = {id(tensors[name]): value for name, value in new.items()}
    for child in module.modules():
        for registry in (child._parameters, child._buffers):
            for key, tensor in registry.items():
                if tensor is not None and id(tensor) in by_identity:
                    registry[key] = by_identity[id(tensor)]  # type: ignore[assignment]
