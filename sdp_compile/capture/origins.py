"""From what a tensor follows that forward computes while it is captured."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree as pytree

from sdp_compile.capture.users import is_of_users
from sdp_compile.ir.plain import frozen


def tensors_in(value: Any, most: int = 1000) -> Iterator[Tensor]:
    """Yields the tensors in a value: in containers, and in attributes of the user's own objects."""
    for leaf in pytree.tree_leaves(value)[:most]:
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_of_users(type(leaf)) and not isinstance(leaf, (nn.Module, type)) and hasattr(leaf, "__dict__"):
            for tensor in pytree.tree_leaves(list(vars(leaf).values())):
                if isinstance(tensor, Tensor):
                    yield tensor


def placeholders(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[fx.Node, str]:
    """Returns the names of parameters or buffers by the inputs of the traced graph that stand for them."""
    named = tensors.items() if isinstance(tensors, Mapping) else tensors
    return {node: name for name, tensor in named if (node := _node(tensor)) and node.op == "placeholder"}


def what_changes(tensor: Tensor, constant: Collection[fx.Node]) -> str:
    """Returns on what a tensor depends that another call may change, in words; empty if it does not."""
    for node in _sources(tensor, constant):
        if node.op == "placeholder" and node not in constant:
            return "a tensor that depends on its inputs, parameters or changing buffers"
        if _is_random(node.target):
            return "random numbers"
    return ""


def sizes_in(value: Any) -> bool:
    """Whether a value follows from a size of the inputs that is free while forward is traced."""
    if any(map(free_symbols, (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, _SYMBOLIC)))):
        return True
    found = (node.meta.get("val") for tensor in tensors_in(value) for node in _sources(tensor, ()))
    return any(free_symbols(one) for one in found if isinstance(one, (*_SYMBOLIC, Tensor)))


def fingerprint(value: Any, constant: Mapping[fx.Node, str]) -> str:
    """Returns a text that is equal for values that are computed in the same way from the same.

    Args:
        value: A tensor that is being traced, a number, or a container of both.
        constant: What the inputs of the graph are called.
    """
    lines: list[str] = []
    numbers: dict[fx.Node, int] = {}
    for leaf in pytree.tree_leaves(value):
        found = list(tensors_in(leaf))
        lines.append("tensors" if found else repr(frozen(leaf)))
        for tensor in found:
            node = _node(tensor)
            if node is None:
                lines.append(_content(tensor))
                continue
            for source in sorted(_sources(tensor, constant)):  # in the order of the graph
                if source not in numbers:
                    numbers[source] = len(numbers)
                    lines.append(_line(source, numbers, constant))
            lines.append(f"= {numbers.get(node)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _line(node: fx.Node, numbers: Mapping[fx.Node, int], constant: Mapping[fx.Node, str]) -> str:
    value = node.meta.get("val")
    if node in constant:
        return constant[node]
    if isinstance(value, _SYMBOLIC):
        return str(value)
    kind = f"{value.dtype} {list(value.shape)} {value.device}" if isinstance(value, Tensor) else ""
    if node.op == "get_attr":
        mode = get_proxy_mode()
        root = None if mode is None else getattr(mode.tracer, "root", None)
        held = getattr(root, str(node.target), None)
        return f"{kind} {_content(held) if isinstance(held, Tensor) else id(node)}"
    arguments = pytree.tree_map(
        lambda one: f"%{numbers.get(one)}" if isinstance(one, fx.Node) else one, [node.args, node.kwargs]
    )
    return f"{node.target}{arguments} {kind}"


def _content(tensor: Tensor) -> str:
    """Returns a text for the values of a constant."""
    value = getattr(tensor, "constant", None)  # of a fake tensor
    value = tensor if value is None else value
    try:
        with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
            return f"{value.dtype} {value.detach().cpu().tolist()}"
    except Exception:  # values that are not known
        return f"unknown {id(tensor)}"


def _node(tensor: Tensor) -> fx.Node | None:
    mode = get_proxy_mode()
    assert mode is not None, "forward is not being captured"
    slot = get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def _sources(tensor: Tensor, known: Collection[fx.Node]) -> Iterator[fx.Node]:
    """Yields the nodes from which a tensor follows; nothing that a node in ``known`` follows from."""
    node = _node(tensor)
    todo, seen = [] if node is None else [node], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node not in known and not _ignores_values(node.target):
            todo += node.all_input_nodes


def _is_random(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _ignores_values(target: Any) -> bool:
    """Whether an operator takes from a tensor only its size, dtype and device."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.partition("::")[2]
    return name.startswith(("sym_", "new_")) or name.endswith("_like")


_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
