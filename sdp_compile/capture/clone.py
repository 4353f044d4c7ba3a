"""Copies of the user's model that share or drop its weights, so that the original is never touched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from sdp_compile.errors import CaptureError


def named_state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer under every name, tied ones repeatedly."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer, with the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_state(model)}


def clone(model: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> nn.Module:
    """A deep copy of ``model`` whose parameters and buffers are ``tensor(original)``; by default the very same tensors.

    Tied tensors stay tied. Raises `CaptureError` where a part of the model cannot be copied.
    """
    memo: dict[int, object] = {}
    for _, original in named_state(model):
        if id(original) not in memo:
            memo[id(original)] = tensor(original)
    for module in model.modules():
        for value in vars(module).values():
            # Results kept from an earlier forward call (weight norm by hooks, caches): deepcopy refuses them.
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and capture works on a copy to leave the model as it is: "
            f"{type(error).__name__}: {error}. {_culprit(model, memo)}"
        ) from error


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with its parameters and persistent buffers on the meta device.

    Buffers outside of ``state_dict()`` keep their values, since nothing else could restore them.
    """
    kept = {
        id(buffer) for name, buffer in model.named_buffers(remove_duplicate=False) if not is_persistent(model, name)
    }
    return clone(model, lambda tensor: tensor.detach().clone() if id(tensor) in kept else to_meta(tensor))


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like ``tensor`` (a parameter if it is one) on the meta device."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def is_persistent(model: nn.Module, name: str) -> bool:
    """Whether the buffer ``name`` is part of ``state_dict()``."""
    path, _, leaf = name.rpartition(".")
    return leaf not in model.get_submodule(path)._non_persistent_buffers_set


def _culprit(model: nn.Module, memo: dict[int, object]) -> str:
    """Which attribute of which module cannot be copied."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                where = f"'{path}' ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
                return f"Attribute {key!r} of {where} is the part that cannot be: give it a __deepcopy__ or remove it."
    return "Make copy.deepcopy(model) work."
