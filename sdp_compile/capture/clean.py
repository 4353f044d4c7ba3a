"""Removes what capture leaves in a graph and what would hide its structure from the analysis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdp_compile.ir.effects import remove_dead_code
from sdp_compile.ir.schema import written_statistics

aten = torch.ops.aten

_ASSERTS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)


def clean(graph: fx.Graph) -> None:
    """Removes assertions on sizes, copies that export inserted, identities and dead code from ``graph``, in place.

    Sizes that were free when the graph began, and fixed by what follows, become numbers.

    Assertions on the values of tensors stay.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTS:
            graph.erase_node(node)
        elif is_identity(node) or is_self_copy(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif (number := _number(node.meta.get("val"))) is not None:
            node.replace_all_uses_with(number)
    remove_dead_code(graph)
    separate_updates(graph)


def separate_updates(graph: fx.Graph) -> None:
    """Makes the readers of a buffer work on a copy of its old value where forward assigns a new one, in place.

    The model binds a new tensor to the buffer's name, but the graph ends with a copy into the buffer itself. The old
    tensor, which autograd may have saved or the model may return, must not change with it.
    """
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        if node.target is not aten.copy_.default:
            break
        buffer = node.args[0]
        readers = [user for user in buffer.users if user is not node and user.target is not aten.sym_size.int]
        if (
            buffer.op != "get_attr"
            or not readers
            or any(is_mutation(reader) or written_statistics(reader) for reader in readers)
        ):
            continue
        with graph.inserting_after(buffer):
            old = graph.call_function(aten.clone.default, (buffer,))
        old.meta = {**buffer.meta, "stack_trace": node.meta.get("stack_trace")}
        for reader in readers:
            reader.replace_input_with(buffer, old)


def is_identity(node: fx.Node) -> bool:
    """Whether the node returns its input, with the same values, gradient and storage.

    ``detach``, ``detach_`` and ``lift_fresh_copy`` count if their input is a constant that nothing writes to.
    """
    if node.target in (aten.alias.default, aten.lift_fresh.default):
        return True
    if node.target in (aten.lift_fresh_copy.default, aten.detach_.default, aten.detach.default):
        source = node.args[0]
        constant = isinstance(source, fx.Node) and source.op == "get_attr" and not _requires_grad(source)
        return constant and not any(is_mutation(user) for user in node.users if user.target is not aten.detach_.default)
    return False


def is_self_copy(node: fx.Node) -> bool:
    """Whether the node copies a tensor onto itself. Export does this after an in-place operator on a buffer."""
    if node.target is not aten.copy_.default:
        return False
    target, source = node.args[0], node.args[1]
    while isinstance(source, fx.Node) and source is not target and is_mutation(source) and source.args:
        source = source.args[0]
    return source is target


def is_mutation(node: fx.Node) -> bool:
    """Whether the node writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _number(value: Any) -> int | float | bool | None:
    """Returns the number that a symbolic value always has, None if it depends on the inputs."""
    if isinstance(value, torch.SymInt):
        return value.node.maybe_as_int()
    if isinstance(value, torch.SymFloat):
        return value.node.maybe_as_float()
    if isinstance(value, torch.SymBool):
        return value.node.maybe_as_bool()
    return None


def _requires_grad(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.requires_grad


__all__ = ["clean", "is_mutation"]
