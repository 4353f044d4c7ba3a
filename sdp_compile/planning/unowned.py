"""The parts of parameters that a worker holds without owning them, under backward masking.

The worker computes with the full model and trains its own part of it. A parameter that it owns in part is stored once,
in parts: the owned part, which is the trained parameter, and for each cut dimension a buffer with the rest. Joined
dimension by dimension, they are the full parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sdp_compile.planning.plan import Plan
from sdp_compile.structure.layout import Indices


@dataclass(frozen=True, eq=False)
class Unowned:
    """A part of a parameter that a worker holds in a buffer.

    Attributes:
        name: The buffer's name.
        parameter: The canonical name of the parameter.
        dim: The dimension along which the part is joined to the others; None if the worker owns nothing of the
            parameter and the buffer holds all of it.
        index: The full coordinates that the part holds, one list per dimension; the part is their outer product.
        size: Size of the full parameter along ``dim``.
    """

    name: str
    parameter: str
    dim: int | None
    index: tuple[Indices, ...]
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the buffer."""
        return tuple(len(index) for index in self.index)

    @cached_property
    def runs(self) -> tuple[int, ...]:
        """The full dimension as lengths of alternating owned and unowned runs; the first is owned and may be 0."""
        assert self.dim is not None
        is_unowned = np.zeros(self.size, dtype=np.bool_)
        is_unowned[self.index[self.dim]] = True
        borders = np.flatnonzero(np.diff(is_unowned)) + 1
        lengths = np.diff(np.concatenate([[0], borders, [self.size]])).tolist()
        return (0, *lengths) if is_unowned[0] else tuple(lengths)


def unowned_parts(plan: Plan, rank: int) -> dict[str, tuple[Unowned, ...]]:
    """Returns the unowned parts of each parameter that ``rank`` does not own completely, in the order of joining."""
    if plan.masking == "forward":
        return {}
    found = ((name, _parts(plan, name, rank)) for name, tensor in plan.state.items() if tensor.kind == "parameter")
    return {name: parts for name, parts in found if parts}


def _parts(plan: Plan, name: str, rank: int) -> tuple[Unowned, ...]:
    shape, kept = plan.state[name].shape, plan.kept(name, rank)
    everything = tuple(np.arange(size, dtype=np.int64) for size in shape)
    if kept is None:
        return (Unowned(f"{name}_unowned", name, None, everything, 0),)
    parts = []
    for dim, size in enumerate(shape):
        if len(kept[dim]) < size:
            others = np.setdiff1d(everything[dim], kept[dim], assume_unique=True)
            # Dimensions before this one are joined already, those after it are not.
            index = (*everything[:dim], others, *kept[dim + 1 :])
            parts.append(Unowned(f"{name}_unowned{dim}", name, dim, index, size))
    return tuple(parts)
