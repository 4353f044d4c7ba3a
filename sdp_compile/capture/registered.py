"""Turns the tensors that modules keep as plain attributes into buffers, and refuses those that nothing would train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.capture.attributes import INTERNAL, Alias
from sdp_compile.capture.clone import clone, named_state
from sdp_compile.errors import CaptureError
from sdp_compile.ir.parts import submodule


def registered(model: nn.Module) -> nn.Module:
    """Returns a copy of ``model``, with the same tensors, in which tensors kept as attributes are buffers.

    Forward may then write to them, and workers and full models get them, as with other buffers. They stay outside
    ``state_dict()``. An attribute that is the detached parameter of a layer becomes an `Alias`.

    Args:
        model: The model, which is not changed.

    Raises:
        CaptureError: A tensor that requires gradients is not registered. The error names it.
    """
    state: dict[Any, str] = {}
    for name, tensor in named_state(model):
        state.setdefault(_memory(tensor), name)
    plain: list[tuple[str, str, torch.Tensor]] = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in INTERNAL:
                continue
            for leaf in pytree.tree_leaves(value):
                _refuse_trained(model, path, name, leaf, state)
            if isinstance(value, torch.Tensor) and _is_kept(value) and not _is_in_class(module, name):
                plain.append((path, name, value))
    if not plain:
        return model
    kept = {id(value): value for _path, _name, value in plain}
    copied = clone(model, kept=kept)
    for path, name, value in plain:
        module = submodule(copied, path)
        delattr(module, name)
        source = state.get(_memory(value)) if value.numel() else None
        if source is None:
            module.register_buffer(name, value, persistent=False)
        else:
            owner, _, leaf = source.rpartition(".")
            vars(module)[name] = Alias(owner, leaf)
    return copied


def plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors that modules keep as attributes, by the names that they have as buffers of `registered`."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in INTERNAL
        and isinstance(value, torch.Tensor)
        and _is_kept(value)
        and not _is_in_class(module, name)
    }


def _is_kept(value: torch.Tensor) -> bool:
    """Whether a tensor is state: what an earlier call computed is computed again by the next, as weight norm does."""
    return value.grad_fn is None and not value.requires_grad


def _is_in_class(module: nn.Module, name: str) -> bool:
    """Whether the class has an attribute of a name too, such as a `cached_property`, which would hide a buffer."""
    return hasattr(type(module), name)


def _memory(tensor: torch.Tensor) -> Any:
    """Returns a key that is equal for tensors that show the same memory in the same way."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _refuse_trained(model: nn.Module, path: str, name: str, value: Any, state: dict[Any, str]) -> None:
    if not isinstance(value, torch.Tensor) or not value.requires_grad or value.grad_fn is not None:
        return
    if _memory(value) in state:
        return
    where = f"module {path!r}" if path else "the model"
    raise CaptureError(
        f"{type(model).__name__} keeps a tensor {list(value.shape)} that requires gradients in attribute {name!r} of "
        f"{where}, outside its parameters, so nothing would train it. Make it an nn.Parameter, or put it in an "
        "nn.ParameterList."
    )
