"""Drops the residual branches that a worker does not own."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sdp_compile.errors import LoweringError
from sdp_compile.ir.effects import Effects, shape_text, tensor_value, written_inputs
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ir.schema import functional_variant
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.passes.branches import call_like, dropped_blocks, outputs_of
from sdp_compile.structure.blocks.additions import Addend, Addition, addition_read_by
from sdp_compile.structure.blocks.block import Block

aten = torch.ops.aten


@dataclass(frozen=True)
class BypassBlocks(Pass):
    """Replaces ``x + f(x)`` by ``x`` where the worker does not own ``f``.

    The readers of the sum read the skip path, in the dtype and memory layout of the sum, times its factor where it has
    one, as in ``lerp``. Where more is left of a sum than one term, zeros take the place of the branch. The branch keeps
    its nodes, which nobody reads any more; `DeadCode` removes them.

    Raises:
        LoweringError: If an earlier pass removed or renamed the nodes of a branch.
    """

    name: ClassVar[str] = "bypass_blocks"

    def run(self, program: Program, context: PassContext) -> Program:
        blocks = dropped_blocks(context)
        if not blocks:
            return program
        program = copy_program(program)
        _bypass(program, blocks)
        return program


def _bypass(program: Program, blocks: list[Block]) -> None:
    """Replaces each sum of a dropped branch by its other terms.

    Where all terms of a sum are dropped, the sum is dropped too, down to one with a term that is kept.
    """
    effects = Effects(program.graph)
    zeros = {operand for _, operand in outputs_of(program, blocks)}
    dropped = {name for block in blocks for name in block.nodes[program.key]}
    for node in effects.nodes:
        if zeros.isdisjoint(node.all_input_nodes):
            continue
        addition = addition_read_by(node) if node.name not in dropped else None
        kept = [] if addition is None else [a for a in addition.addends if zeros.isdisjoint(a.factors)]
        if addition is None or not kept:
            zeros.add(node)  # only sums read a branch, directly or through nodes that pass it on
        elif len(kept) == 1 and kept[0].alone is not None and kept[0].scale is not None:
            _replace(addition, kept[0].alone, kept[0].scale, effects)
        else:
            _put_zeros(addition, kept, zeros)


def _replace(addition: Addition, skip: fx.Node, scale: float, effects: Effects) -> None:
    """Makes all readers of a sum read ``skip`` times ``scale``, in the same dtype and memory layout."""
    add = addition.result
    total, value = tensor_value(add), tensor_value(skip)
    if total is None or value is None or shape_text(total) != shape_text(value):
        raise LoweringError(f"The skip path {skip.name!r} does not have the shape of the sum {add.name!r}.")
    own_storage = effects.storage[add] is not effects.storage[skip]
    stays = skip
    with add.graph.inserting_before(add):
        if scale != 1:  # in place where the sum is: the skip path may be read again
            times = aten.mul.Tensor if own_storage else aten.mul_.Tensor
            stays = call_like(stays, times, (stays, scale))
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
    if addition.reader is not add:
        add.graph.erase_node(addition.reader)


def _put_zeros(addition: Addition, kept: list[Addend], zeros: Set[fx.Node]) -> None:
    """Makes the reader of a sum read zeros in the place of dropped terms."""
    reader = addition.reader
    if not zeros.isdisjoint(written_inputs(reader)):
        _make_out_of_place(reader)
    factors = dict.fromkeys(factor for addend in addition.addends for factor in addend.factors if factor in zeros)
    like = kept[0].factors[0]
    for factor in factors:
        zero = factor.meta["val"]
        shape = [1] * zero.ndim
        with reader.graph.inserting_before(reader):
            if reader is addition.result:  # broadcast
                stays = call_like(like, aten.new_zeros.default, (like, shape), {"dtype": zero.dtype})
                stays.meta.pop("layouts", None)
            else:
                stays = call_like(like, aten.zeros_like.default, (like,), {"dtype": zero.dtype})
        reader.replace_input_with(factor, stays)


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
