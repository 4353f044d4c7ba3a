"""The block families that a policy may partition: each branch by itself, or the branches of each layer together."""

from __future__ import annotations

from collections.abc import Mapping

from sdp_compile.ir.program import Capture
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.families import Family


def block_families(
    blocks: Blocks, capture: Capture, flops: Mapping[str, float] | None = None
) -> tuple[list[Family], dict[str, dict[str, int]]]:
    """Returns the families ``blocks`` and ``layers``, and for each the unit of every parameter and buffer.

    Args:
        blocks: The blocks of the model; without any there are no families.
        capture: The captured model.
        flops: The forward FLOPs of the nodes of the training program, by name.
    """
    if not blocks.blocks:
        return [], {}
    flops = flops or {}
    mode = next(iter(capture.programs))
    names = {"blocks": tuple(block.name for block in blocks.blocks), "layers": tuple(blocks.layers)}
    families: list[Family] = []
    members: dict[str, dict[str, int]] = {}
    for name, unit_names in names.items():
        units = [[blocks.blocks[number] for number in unit] for unit in blocks.units(name)]
        parameters = [[fqn for block in unit for fqn in block.parameters] for unit in units]
        nodes = [[node for block in unit for node in block.nodes[mode]] for unit in units]
        families.append(
            Family(
                name=name,
                kind="block",
                units=len(units),
                unit_bytes=tuple(sum(capture.state[fqn].nbytes for fqn in unit) for unit in parameters),
                unit_flops=tuple(float(sum(flops.get(node, 0.0) for node in unit)) for unit in nodes),
                module_path="",
                depth=0,
                parameters=tuple(fqn for unit in parameters for fqn in unit),
                unit_names=unit_names,
            )
        )
        members[name] = {
            fqn: number
            for number, unit in enumerate(units)
            for block in unit
            for fqn in (*block.parameters, *block.buffers)
        }
    return families, members
