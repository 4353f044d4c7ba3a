"""Blocks: the residual branches of a model that can be dropped whole, and where they lie in its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Branch:
    """One output of a block in one graph.

    ``add`` is the node that adds the output, and ``operands`` are what it reads for that and nothing else reads: the
    output, or those of its factors where ``add`` multiplies too, activations first.
    """

    add: str
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A droppable residual branch with its outputs; several branches where they share parameters.

    ``name`` is the path of the module that contains it, ``layer`` that of the module whose branches belong together.
    ``parameters`` and ``buffers`` (lifted constants included) are used by nothing else. ``nodes`` are all that it
    computes, in the order of the graph. Graphs have the keys of the capture's programs.
    """

    name: str
    layer: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    branches: Mapping[str, tuple[Branch, ...]]
    nodes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Blocks:
    """All blocks of a model, ordered by depth.

    ``residual_adds`` names for each graph the add nodes of skip paths and branches with parameters, whether or not the
    branch can be dropped. An add inside another branch does not belong to the residual stream.
    """

    blocks: tuple[Block, ...]
    residual_adds: Mapping[str, frozenset[str]]

    @cached_property
    def layers(self) -> Mapping[str, tuple[int, ...]]:
        """For each layer the numbers of its blocks."""
        layers: dict[str, tuple[int, ...]] = {}
        for number, block in enumerate(self.blocks):
            layers[block.layer] = (*layers.get(block.layer, ()), number)
        return layers

    def units(self, family: str) -> tuple[tuple[int, ...], ...]:
        """Returns for each unit of the family ``blocks`` or ``layers`` the numbers of its blocks."""
        return tuple(self.layers.values()) if family == "layers" else tuple((i,) for i in range(len(self.blocks)))
