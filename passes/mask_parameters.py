"""The reference lowering: full-size parameters, masked where they enter the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from sdp_compile.ir.program import Capture, Program, StateTensor
from sdp_compile.ops import inserted as ops
from sdp_compile.passes.base import Lowering, Pass, copy_program
from sdp_compile.planning.plan import Plan


def mask_name(parameter: str, dim: int) -> str:
    """The buffer that holds the mask of one dimension of a parameter."""
    return f"_sdp_mask_{parameter.replace('.', '_')}_{dim}"


def masked_dims(plan: Plan, parameter: str, rank: int) -> dict[int, torch.Tensor]:
    """The dimensions of a parameter that ``rank`` does not own whole, with the 1-d bool mask of each."""
    kept = plan.kept(parameter, rank)
    masks: dict[int, torch.Tensor] = {}
    for dim, size in enumerate(plan.state[parameter].shape):
        index = np.empty(0, np.int64) if kept is None else kept[dim]
        if len(index) < size:
            masks[dim] = torch.zeros(size, dtype=torch.bool)
            masks[dim][torch.from_numpy(index)] = True
    return masks


def mask_tensors(plan: Plan, rank: int) -> dict[str, torch.Tensor]:
    """The mask buffers that masked programs read, each shaped to broadcast over its parameter."""
    result: dict[str, torch.Tensor] = {}
    for parameter, tensor in plan.state.items():
        if tensor.kind == "parameter":
            for dim, mask in masked_dims(plan, parameter, rank).items():
                shape = [1] * len(tensor.shape)
                shape[dim] = -1
                result[mask_name(parameter, dim)] = mask.view(shape)
    return result


@torch.no_grad()
def clear_unowned(tensors: Mapping[str, torch.Tensor], plan: Plan, rank: int) -> None:
    """Sets the elements of full-size parameters that ``rank`` does not own to 0, where weight decay leaves them."""
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter" and name in tensors and not tensors[name].is_meta:
            for dim, mask in masked_dims(plan, name, rank).items():
                tensors[name].index_fill_(dim, (~mask).nonzero().view(-1).to(tensors[name].device), 0)


def with_masks(capture: Capture, masks: Mapping[str, torch.Tensor]) -> Capture:
    """The capture with the mask buffers among its constants."""
    described = {
        name: StateTensor(tuple(mask.shape), mask.dtype, "constant", persistent=False) for name, mask in masks.items()
    }
    return replace(capture, state={**capture.state, **described}, constants={**capture.constants, **masks})


@dataclass(frozen=True)
class MaskParameters(Pass):
    """Each parameter that the worker owns in part is read through `sdp_compile.ops.mask_parameter`.

    A mask is stored per cut dimension (the mask of a parameter is their outer product), never at full size.
    """

    name: ClassVar[str] = "mask_parameters"

    def run(self, program: Program, context: Lowering) -> Program:
        return through_masks(program, context, ops.mask_parameter)


def through_masks(program: Program, context: Lowering, function: Callable[..., torch.Tensor]) -> Program:
    """The program with each parameter that has masks read through ``function(parameter, *masks)``."""
    program = copy_program(program)
    graph = program.graph
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        name = str(node.target)
        described = context.capture.state[name]
        masks = [mask_name(name, dim) for dim in range(len(described.shape))]
        masks = [mask for mask in masks if described.kind == "parameter" and mask in context.capture.state]
        if not masks:
            continue
        users = list(node.users)
        with graph.inserting_after(node):
            masked = graph.call_function(function, (node,))
        masked.meta = {key: value for key, value in node.meta.items() if key != "rewrites"}
        with graph.inserting_before(masked):
            sources = [graph.get_attr(mask) for mask in masks]
        for source in sources:
            source.meta["val"] = context.capture.constants[str(source.target)]
        masked.args = (node, *sources)
        for user in users:
            user.replace_input_with(node, masked)
    graph.lint()
    return program
