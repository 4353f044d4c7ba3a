"""Captures of the models of `tests.runtime.models`, made once for all workers that compile them.

Workers of one test, and of many tests, compile the same few models again and again. How a model is captured is tested
elsewhere; here captures of models that are built alike are the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdp_compile import compiler
from sdp_compile.ir.program import Capture
from tests.runtime import models

_known: dict[Hashable, Capture] = {}
_capture = compiler.capture

_KINDS = {torch.nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm, nn.Linear, nn.Embedding, nn.ModuleList}
_KINDS |= {one for one in vars(models).values() if isinstance(one, type) and issubclass(one, nn.Module)}
_PLAIN = (int, float, str, bool, type(None), tuple)
_HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def share() -> None:
    """From now on, this process captures models that are built alike only once."""
    compiler.capture = _shared


def warm() -> None:
    """Captures the models that most tests compile."""
    with torch.random.fork_rng():
        for name in ("cnn", "transformer"):
            _shared(models.build(name), (models.batch(name, 0),))


@wraps(_capture)
def _shared(model: nn.Module, example_inputs: Any = None, methods: Any = ()) -> Capture:
    key = _key(model, example_inputs, methods)
    if key is None:
        return _capture(model, example_inputs, methods)
    if key not in _known:
        _known[key] = _capture(model, example_inputs, methods)
    known = _known[key]
    return replace(known, skeleton=copy.deepcopy(known.skeleton))


def _key(model: nn.Module, example_inputs: Any, methods: Any) -> Hashable:
    """Everything on which a capture depends; None for a model of which more may matter."""
    parts = []
    for name, part in model.named_modules():
        plain = {key: value for key, value in vars(part).items() if not key.startswith("_")}
        if type(part) not in _KINDS or any(getattr(part, hooks) for hooks in _HOOKS):
            return None
        if not all(isinstance(value, _PLAIN) for value in plain.values()):
            return None
        parts.append((name, type(part), tuple(sorted(plain.items()))))
    leaves, structure = pytree.tree_flatten(example_inputs)
    if methods or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first = {id(tensor): name for name, tensor in reversed(tensors)}
    return (
        tuple(parts),
        tuple((name, first[id(tensor)], *_kind(tensor)) for name, tensor in tensors),
        structure,
        tuple(map(_kind, leaves)),
        tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")),
        (torch.is_grad_enabled(), torch.get_default_dtype()),
    )


def _kind(tensor: Tensor) -> tuple[Hashable, ...]:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
