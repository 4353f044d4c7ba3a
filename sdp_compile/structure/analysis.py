"""The analysis of a captured model: its axes and blocks, and what each node of its graphs has to do with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdp_compile.ir.program import Capture, Program, copy_program
from sdp_compile.structure.axis_analysis import AxisAnalysis
from sdp_compile.structure.axis_families import axis_families, conflicts
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.blocks.families import block_families
from sdp_compile.structure.blocks.finding import find_blocks
from sdp_compile.structure.families import FlopTerm, Structure
from sdp_compile.structure.flops import flop_terms


@dataclass(frozen=True, eq=False)
class Analysis:
    """A captured model with everything that is known of it before a policy decides.

    Attributes:
        capture: The model as captured, untouched.
        programs: Copies of the captured programs, whose nodes say what they have to do with the axes:
            ``meta["layouts"]`` holds one layout per dimension, ``meta["rewrites"]`` what changes at the node when its
            axes are cut.
        structure: The families that a policy may partition, and where each of them lies.
        blocks: The residual branches that can be dropped whole.
    """

    capture: Capture
    programs: Mapping[str, Program]
    structure: Structure
    blocks: Blocks


def analyse(capture: Capture) -> Analysis:
    """Finds the axes and blocks of a captured model.

    Looks at shapes only, never at weights. The capture stays as it is.

    Args:
        capture: What `sdp_compile.capture.capture` returned.

    Raises:
        CaptureError: If the model's forward changes its parameters in place.
        StructureError: If a rule of an operator contradicts the captured shapes.
    """
    programs = {key: copy_program(program) for key, program in capture.programs.items()}
    annotated = replace(capture, programs=programs)
    blocks = find_blocks(annotated)
    axes = AxisAnalysis(annotated, blocks.residual_adds)
    axes.annotate()
    layouts = {name: tuple(map(axes.layout, value.dims)) for name, value in axes.state.items()}
    order = _first_use(annotated)
    terms: list[FlopTerm] = []
    node_flops: dict[str, float] = {}
    for node in programs["train"].graph.nodes:
        if node.op == "call_function":
            found = flop_terms(node, axes.sizes.example, lambda n: n.meta["layouts"])
            terms += found
            node_flops[node.name] = sum(term.flops for term in found)
    axis_flops: dict[str, float] = defaultdict(float)
    for term in terms:
        for axis in term.axes:
            axis_flops[axis] += term.flops
    found_blocks, members = block_families(blocks, annotated, node_flops)
    structure = Structure(
        families=(*axis_families(layouts, capture.state, axis_flops, order), *found_blocks),
        layouts=layouts,
        conflicts=conflicts(layouts, capture.state),
        residual=axes.residual,
        members=members,
        frozen=axes.frozen(),
        flops=tuple(terms),
        order=order,
        notes=capture.notes,
    )
    return Analysis(capture, programs, structure, blocks)


def _first_use(capture: Capture) -> tuple[str, ...]:
    """The state tensors by first use, in training graphs before evaluation graphs; unused ones are left out."""
    used = [
        str(operand.target)
        for program in sorted(capture.programs.values(), key=lambda program: program.mode, reverse=True)
        for node in program.graph.nodes
        for operand in node.all_input_nodes
        if operand.op == "get_attr"
    ]
    return tuple(dict.fromkeys(used))
