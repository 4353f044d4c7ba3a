"""Copies of the user's model that share its weights or leave them out, so that the original is never changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn

from sdp_compile.capture.hooks import holds_no_module, hook_objects
from sdp_compile.capture.originals import ORIGINALS, originals_of
from sdp_compile.errors import CaptureError
from sdp_compile.ir.parts import submodule


def named_state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter and buffer under each of its names; a tied tensor comes once per name."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Returns, for every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_state(model)}


def clone(
    model: nn.Module,
    tensor: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    kept: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> nn.Module:
    """Returns a deep copy of ``model`` with other parameters and buffers. Tied tensors stay tied.

    Args:
        model: The model to copy.
        tensor: Returns the copy's tensor for each parameter or buffer. By default both share the same tensors.
        kept: More tensors that both share, by identity.

    Raises:
        CaptureError: A part of the model cannot be copied; the error names it.
    """
    memo: dict[int, object] = dict(kept)
    originals = originals_of(model)
    memo.update((id(part), part) for part in originals.compiled_parts())
    for _, original in named_state(model):
        if id(original) not in memo:
            memo[id(original)] = tensor(original)
    for module in model.modules():
        for value in vars(module).values():
            # deepcopy refuses results of an earlier forward call, which weight norm and caches keep.
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach())
    for _, value in hook_objects(model):
        if holds_no_module(value):
            memo.setdefault(id(value), value)  # what hooks collect is to be found where the user looks for it
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and capture works on a copy: "
            f"{type(error).__name__}: {error}. {_culprit(model, memo)}"
        ) from error
    vars(copied)[ORIGINALS] = originals
    return copied


def skeleton(model: nn.Module) -> nn.Module:
    """Returns a copy of ``model`` with its parameters and persistent buffers on the meta device.

    Buffers outside ``state_dict()`` keep their values, because no checkpoint can restore them.
    """
    kept = {
        id(buffer) for name, buffer in model.named_buffers(remove_duplicate=False) if not is_persistent(model, name)
    }
    return clone(model, lambda tensor: tensor.detach().clone() if id(tensor) in kept else to_meta(tensor))


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor like ``tensor`` on the meta device, and a parameter for a parameter."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def is_persistent(model: nn.Module, name: str) -> bool:
    """Whether the buffer ``name`` is part of ``state_dict()``."""
    path, _, leaf = name.rpartition(".")
    return leaf not in submodule(model, path)._non_persistent_buffers_set


def _culprit(model: nn.Module, memo: dict[int, object]) -> str:
    """Returns a sentence that names the attribute that cannot be copied."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                where = f"'{path}' ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
                return f"The reason is attribute {key!r} of {where}: give it a __deepcopy__ method or remove it."
    return "Make copy.deepcopy(model) work."
