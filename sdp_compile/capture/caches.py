"""Tensors that forward keeps by key, in dictionaries that it fills at a first call and then leaves."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.utils import _pytree as pytree

from sdp_compile.capture.attributes import Place
from sdp_compile.errors import CaptureError
from sdp_compile.ir.parts import submodule


def check_kept(subject: nn.Module, places: Mapping[Place, str]) -> None:
    """Makes the captured forward of a model refuse caches of what a later call may compute otherwise.

    A graph computes what is in them at each call. So it may follow from sizes, constants, and buffers to which forward
    does not write; in evaluation also from parameters, if the part that has the cache overrides ``train()``, which
    clears it (timm's LeViT).

    Args:
        subject: The copy of the model that is captured.
        places: The attributes with the dictionaries, and the lines that fill them.
    """
    forward = subject.forward
    before = {place: set(map(id, _tensors(subject, place))) for place in places}

    @functools.wraps(forward)
    def checking(*args: Any, **kwargs: Any) -> Any:
        buffers = dict(subject.named_buffers()) if before else {}
        result = forward(*args, **kwargs)
        kept = {name for name, buffer in subject.named_buffers() if buffers.get(name) is buffer}
        constant = _placeholders(buffers[name] for name in kept)
        trained = _placeholders(subject.parameters()) if before else set()
        for place, known in before.items():
            for tensor in _tensors(subject, place):
                owner = submodule(subject, place[0])
                clears = not owner.training and type(owner).train is not nn.Module.train
                why = "" if id(tensor) in known else _what_changes(tensor, constant | trained if clears else constant)
                if why:
                    path, name = place
                    at = f" at {places[place]}" if places[place] else ""
                    where = f"module {path!r}" if path else "the model"
                    raise CaptureError(
                        f"{type(subject).__name__} cannot be captured: its forward keeps {why} for later calls in "
                        f"attribute {name!r} of {where}{at}. Compute it at each call, or keep it in a buffer."
                    )
        return result

    vars(subject)["forward"] = checking  # a part of the model may have this name too


def _tensors(subject: nn.Module, place: Place) -> list[Tensor]:
    held = getattr(submodule(subject, place[0]), place[1])
    return [leaf for leaf in pytree.tree_leaves(held) if isinstance(leaf, Tensor)]


def _node(tensor: Tensor) -> fx.Node | None:
    mode = get_proxy_mode()
    assert mode is not None, "forward is not being captured"
    slot = get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def _placeholders(tensors: Iterable[Tensor]) -> set[fx.Node]:
    return {node for tensor in tensors if (node := _node(tensor)) and node.op == "placeholder"}


def _what_changes(tensor: Tensor, constant: set[fx.Node]) -> str:
    """Returns on what a tensor depends that another call may change, in words; empty if it does not."""
    node = _node(tensor)
    todo, seen = [] if node is None else [node], set(constant)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            return "a tensor that depends on its inputs, parameters or changing buffers"
        if _is_random(node.target):
            return "random numbers"
        if not _ignores_values(node.target):
            todo += node.all_input_nodes
    return ""


def _is_random(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _ignores_values(target: Any) -> bool:
    """Whether an operator takes from a tensor only its size, dtype and device."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.partition("::")[2]
    return name.startswith(("sym_", "new_")) or name.endswith("_like")
