"""Blocks: the residual branches of a model that can be dropped whole, and where they lie in its graphs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from sdp_compile.ir.program import Mode

ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, operator.add, operator.iadd)
"""What a graph calls to add a branch to its skip path."""


@dataclass(frozen=True)
class Branch:
    """A block in one graph: ``nodes``, whose last, ``operand``, is its output and is taken by ``add``."""

    add: str
    operand: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A droppable residual branch; several branches where they share parameters.

    ``name`` is the path of the module that contains it, ``layer`` that of the module whose branches belong together.
    ``parameters`` and ``buffers`` (lifted constants included) are used by nothing else.
    """

    name: str
    layer: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    branches: Mapping[Mode, tuple[Branch, ...]]


@dataclass(frozen=True)
class Blocks:
    """All blocks of a model, ordered by depth.

    ``residual_adds`` names, for each mode, the add nodes of skip paths and branches with parameters, whether or not the
    branch can be dropped. An add inside another branch does not belong to the residual stream.
    """

    blocks: tuple[Block, ...]
    residual_adds: Mapping[Mode, frozenset[str]]

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
