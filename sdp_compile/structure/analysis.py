"""The anatomy of a captured model: axes and blocks together."""

from __future__ import annotations

from collections import defaultdict

from sdp_compile.ir.program import Capture
from sdp_compile.structure.axis_analysis import AxisAnalysis
from sdp_compile.structure.axis_families import axis_families, conflicts
from sdp_compile.structure.blocks.families import block_families
from sdp_compile.structure.blocks.finding import Blocks, find_blocks
from sdp_compile.structure.families import FlopTerm, Structure
from sdp_compile.structure.flops import flop_terms


def analyse(capture: Capture) -> tuple[Structure, Blocks]:
    """Find the axes and blocks of a model; annotates the capture's nodes with ``layouts`` and ``rewrites``.

    Looks at shapes only, never at weights.
    """
    blocks = find_blocks(capture)
    analysis = AxisAnalysis(capture, blocks.residual_adds)
    analysis.annotate()
    layouts = {name: tuple(map(analysis.layout, value.dims)) for name, value in analysis.state.items()}
    order = _first_use(capture)
    main = capture.programs["train"]
    terms: list[FlopTerm] = []
    node_flops: dict[str, float] = {}
    for node in main.graph.nodes:
        if node.op == "call_function":
            found = flop_terms(node, analysis.sizes.example, lambda n: n.meta["layouts"])
            terms += found
            node_flops[node.name] = sum(term.flops for term in found)
    axis_flops: dict[str, float] = defaultdict(float)
    for term in terms:
        for axis in term.axes:
            axis_flops[axis] += term.flops
    residual = {
        axis
        for mode, program in capture.programs.items()
        for node in program.graph.nodes
        if node.name in blocks.residual_adds[mode]
        for axis in analysis.axes_of(mode, node)
    }
    found_blocks, members = block_families(blocks, capture, node_flops)
    structure = Structure(
        families=(*axis_families(layouts, capture.state, axis_flops, order), *found_blocks),
        layouts=layouts,
        conflicts=conflicts(layouts, capture.state),
        residual=frozenset(residual),
        members=members,
        frozen=analysis.frozen(),
        flops=tuple(terms),
        order=order,
        notes=capture.notes,
    )
    return structure, blocks


def _first_use(capture: Capture) -> tuple[str, ...]:
    """The state tensors by first use, in the training graph before the evaluation graph; unused ones are left out."""
    used = [
        str(operand.target)
        for mode in sorted(capture.programs, reverse=True)
        for node in capture.programs[mode].graph.nodes
        for operand in node.all_input_nodes
        if operand.op == "get_attr"
    ]
    return tuple(dict.fromkeys(used))
