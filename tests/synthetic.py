"""Small structures made by hand, for tests of policies and plans that need neither a model nor its analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch import nn

from sdp_compile.ir.program import Capture, StateTensor
from sdp_compile.structure.analysis import Analysis
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.families import Family, FlopTerm, Frozen, Structure
from sdp_compile.structure.layout import Layout, Leaf, Product, Sum, families, leaves

Layouts = Mapping[str, Sequence[Layout]]


def structure_of(
    layouts: Layouts,
    *,
    blocks: Mapping[str, Sequence[Sequence[str]]] | None = None,
    outer: Mapping[str, int] | None = None,
    residual: Sequence[str] = (),
    frozen: Sequence[Frozen] = (),
    flops: Sequence[FlopTerm] | None = None,
) -> Structure:
    """The structure of float32 parameters with these layouts.

    Families follow from the layouts' leaves, their bytes from the parameters, conflicts from families that meet in one
    parameter. ``blocks`` gives for each block family the parameters of each unit.
    """
    units: dict[str, int] = {}
    unit_bytes: dict[str, int] = {}
    touched: dict[str, list[str]] = {}
    conflicts: set[frozenset[str]] = set()
    for name, dims in layouts.items():
        numel = prod(dim.size for dim in dims)
        for dim in dims:
            for leaf in leaves(dim):
                if leaf.family is not None:
                    units[leaf.family] = leaf.size
                    touched.setdefault(leaf.family, []).append(name)
            for family in families(dim):
                nbytes = 4 * numel // dim.size * _through(dim, family)
                unit_bytes[family] = unit_bytes.get(family, 0) + nbytes
        here = [families(dim) for dim in dims]
        conflicts |= {frozenset((a, b)) for one, two in combinations(here, 2) for a in one for b in two}
        conflicts |= {
            frozenset(pair) for dim in dims if isinstance(dim, Product) for pair in combinations(families(dim), 2)
        }
    found = [
        Family(
            family,
            "axis",
            count,
            (unit_bytes[family] // count,) * count,
            (8.0,) * count,
            touched[family][0].rsplit(".", 1)[0],
            depth,
            tuple(dict.fromkeys(touched[family])),
            (outer or {}).get(family, 0),
        )
        for depth, (family, count) in enumerate(units.items())
    ]
    members: dict[str, dict[str, int]] = {}
    for family, contents in (blocks or {}).items():
        sizes = [sum(4 * prod(dim.size for dim in layouts[name]) for name in content) for content in contents]
        parameters = tuple(name for content in contents for name in content)
        names = tuple(content[0].rsplit(".", 1)[0] for content in contents)
        costs = tuple(2.0 * size for size in sizes)
        found.append(Family(family, "block", len(contents), tuple(sizes), costs, "", 0, parameters, 0, names))
        members[family] = {name: unit for unit, content in enumerate(contents) for name in content}
    terms = (
        flops
        if flops is not None
        else [
            FlopTerm(2.0 * 4 * prod(dim.size for dim in dims), tuple(f for dim in dims for f in families(dim)))
            for dims in layouts.values()
            if len(dims) > 1
        ]
    )
    return Structure(
        tuple(found),
        {name: tuple(dims) for name, dims in layouts.items()},
        frozenset(conflicts),
        frozenset(residual),
        members,
        tuple(frozen),
        tuple(terms),
        tuple(layouts),
    )


def _through(layout: Layout, family: str) -> int:
    """How many indices of the dimension run through the family."""
    if isinstance(layout, Leaf):
        return layout.size if layout.family == family else 0
    if isinstance(layout, Sum):
        return sum(_through(part, family) for part in layout.parts)
    return max(_through(factor, family) * layout.size // factor.size for factor in layout.factors)


def capture_of(
    structure: Structure, *, buffers: Sequence[str] = (), aliases: Mapping[str, str] | None = None
) -> Capture:
    """The capture of a model with the structure's tensors, all float32 parameters but for the ``buffers``."""
    state = {
        name: StateTensor(
            tuple(dim.size for dim in dims),
            torch.float32,
            *(("buffer", False) if name in buffers else ("parameter", True)),
        )
        for name, dims in structure.layouts.items()
    }
    return Capture({}, state, {**{name: name for name in state}, **(aliases or {})}, {}, nn.Module(), True)


def mlp(hidden: int = 16, width: int = 6, layers: int = 1) -> Structure:
    """``layers`` of up, activation, down; only the hidden axes can be cut."""
    layouts: dict[str, list[Layout]] = {}
    for layer in range(layers):
        axis = Leaf(hidden, f"layers.{layer}.hidden")
        layouts |= {
            f"layers.{layer}.up.weight": [axis, Leaf(width)],
            f"layers.{layer}.up.bias": [axis],
            f"layers.{layer}.down.weight": [Leaf(width), axis],
            f"layers.{layer}.down.bias": [Leaf(width)],
        }
    return structure_of(layouts)


def attention(heads: int = 4, head_width: int = 3, width: int = 12) -> Structure:
    """A fused query, key, value projection (a sum of three) of heads x head width, and an output projection.

    The head axis lies in all of them; the value's head dimension could be cut as well, but meets the heads.
    """
    heads_axis, value_axis = Leaf(heads, "heads"), Leaf(head_width, "value")
    plain, value = Product((heads_axis, Leaf(head_width))), Product((heads_axis, value_axis))
    fused = Sum((plain, plain, value))
    return structure_of(
        {
            "attention.qkv.weight": [fused, Leaf(width)],
            "attention.qkv.bias": [fused],
            "attention.out.weight": [Leaf(width), value],
            "attention.out.bias": [Leaf(width)],
        },
        outer={"value": 1},
    )


def convolutions(channels: Sequence[int] = (8, 16, 12, 8)) -> Structure:
    """A chain of convolutions: every two neighbouring channel axes meet in one weight."""
    axes = [Leaf(count, f"channels.{number}") for number, count in enumerate(channels)]
    layouts: dict[str, list[Layout]] = {}
    for number, (before, axis) in enumerate(zip([Leaf(3), *axes], [*axes, Leaf(10)], strict=True)):
        layouts[f"convs.{number}.weight"] = [axis, before, Leaf(3), Leaf(3)]
        layouts[f"convs.{number}.bias"] = [axis]
    return structure_of(layouts)


def recurrent(width: int = 12) -> Structure:
    """A recurrent weight: its axis meets itself."""
    axis = Leaf(width, "state")
    layouts = {"cell.input": [axis, Leaf(5)], "cell.recurrent": [axis, axis], "cell.output": [Leaf(4), axis]}
    return structure_of(layouts)


def blocks(sizes: Sequence[int] = (4, 4), width: int = 5) -> Structure:
    """Residual branches of one hidden axis each, as blocks and as layers of two branches."""
    layouts: dict[str, list[Layout]] = {"embed.weight": [Leaf(7), Leaf(width)]}
    contents = []
    for number, size in enumerate(sizes):
        axis = Leaf(size, f"blocks.{number}.hidden")
        names = [f"blocks.{number}.up", f"blocks.{number}.down"]
        layouts |= {names[0]: [axis, Leaf(width)], names[1]: [Leaf(width), axis]}
        contents.append(names)
    layers = [[name for names in contents[start : start + 2] for name in names] for start in range(0, len(contents), 2)]
    return structure_of(layouts, blocks={"blocks": contents, "layers": layers})


def nothing() -> Structure:
    """A model with one frozen weight."""
    frozen = Frozen("head.weight", 0, 10, "it is a graph output", "output", "model.py:3", "head")
    return structure_of({"head.weight": [Leaf(10), Leaf(5)]}, frozen=[frozen])


def analysis_of(structure: Structure, **options: Any) -> Analysis:
    """A structure as analysis would hand it on, without graphs; ``options`` are those of `capture_of`."""
    return Analysis(capture_of(structure, **options), {}, structure, Blocks((), {}))
