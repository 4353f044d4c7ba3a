"""Drops the residual branches that a worker does not own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sdp_compile.errors import LoweringError
from sdp_compile.ir.effects import Effects, shape_text, tensor_value
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ir.schema import functional_variant
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.passes.branches import call_like, dropped_branches, nodes_of
from sdp_compile.structure.blocks.block import ADDS, Branch

aten = torch.ops.aten


@dataclass(frozen=True)
class BypassBlocks(Pass):
    """Replaces ``x + f(x)`` by ``x`` where the worker does not own ``f``.

    The readers of the sum read the skip path, in the dtype and memory layout of the sum. The branch keeps its nodes,
    which nobody reads any more; `DeadCode` removes them.

    Raises:
        LoweringError: If an earlier pass removed or renamed the nodes of a branch.
    """

    name: ClassVar[str] = "bypass_blocks"

    def run(self, program: Program, context: PassContext) -> Program:
        branches = dropped_branches(program, context)
        if not branches:
            return program
        program = copy_program(program)
        _bypass(program.graph, branches)
        return program


def _bypass(graph: fx.Graph, branches: list[Branch]) -> None:
    """Replaces each add of a dropped branch by its other side.

    Where both sides of an add are dropped, the sum is dropped too, down to an add with a side that is kept.
    """
    effects = Effects(graph)
    zeros = {operand for _, operand in nodes_of(graph, branches)}
    for node in effects.nodes:
        if zeros.isdisjoint(node.all_input_nodes):
            continue
        kept = [side for side in node.args[:2] if isinstance(side, fx.Node) and side not in zeros]
        if node.target not in ADDS or not kept:
            zeros.add(node)  # only adds read a branch, directly or through nodes that pass it on
        else:
            _replace(node, kept[0], effects)


def _replace(add: fx.Node, skip: fx.Node, effects: Effects) -> None:
    """Makes all readers of ``add`` read ``skip``, in the same dtype and memory layout."""
    total, value = tensor_value(add), tensor_value(skip)
    if total is None or value is None or shape_text(total) != shape_text(value):
        raise LoweringError(f"The skip path {skip.name!r} does not have the shape of the sum {add.name!r}.")
    own_storage = effects.storage[add] is not effects.storage[skip]
    stays = skip
    with add.graph.inserting_before(add):
        if value.dtype != total.dtype:
            stays = call_like(stays, aten.to.dtype, (stays, total.dtype))
        if own_storage and str(value.stride()) != str(total.stride()):
            stays = call_like(stays, aten.clone.default, (stays,), {"memory_format": _memory_format(total)})
        if stays is skip and own_storage and _is_overwritten(add, skip, effects):
            stays = call_like(stays, aten.clone.default, (stays,))
    if stays is not skip:  # for later adds it is the sum
        effects.storage[stays], effects.position[stays] = effects.storage[add], effects.position[add]
    add.replace_all_uses_with(stays)
    add.graph.erase_node(add)  # not left to DeadCode: an add in place would still change the skip path


def _is_overwritten(add: fx.Node, skip: fx.Node, effects: Effects) -> bool:
    """Whether the sum or the skip path is overwritten later, so that they need storage of their own.

    If all that reads the sum is an operator that overwrites it, the operator is made out of place instead.
    """
    writers = effects.written_after(add)
    if writers and set(add.users) == {writers[0]} and writers[0].args[0] is add and _make_out_of_place(writers[0]):
        writers = []  # its result now has storage of its own, so later writes do not matter
    position = effects.position[add]
    skip_writers = effects.writers.get(effects.storage[skip], ())
    return bool(writers) or any(effects.position[writer] > position for writer in skip_writers)


def _make_out_of_place(node: fx.Node) -> bool:
    """Turns an operator such as ``relu_`` into ``relu``; returns False if ATen has no such operator."""
    overload = functional_variant(node.target)
    if overload is None:
        return False
    node.target = overload
    return True


def _memory_format(value: torch.Tensor) -> torch.memory_format:
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        fits = value.dim() == {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format, value.dim())
        if fits and value.is_contiguous(memory_format=memory_format):
            return memory_format
    return torch.preserve_format
