"""What a worker holds of a parameter besides what it owns, under backward masking.

It computes with the full model and trains its own part of it, so a parameter that it owns in part is stored once, in
pieces: the owned part, which is the trained parameter, and along each dimension that is cut the rest. Joined dimension
by dimension they are the full parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sdp_compile.ir.program import Capture, StateTensor
from sdp_compile.structure.layout import Indices

if TYPE_CHECKING:
    from sdp_compile.planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Rest:
    """The part of ``parameter`` in the buffer ``name``: an outer product of full coordinates, one list per dimension.

    It is joined along ``dim``; ``dim`` is None where the worker owns nothing and the buffer is the full parameter.
    """

    name: str
    parameter: str
    dim: int | None
    index: tuple[Indices, ...]
    size: int
    """Of the full parameter along ``dim``."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(index) for index in self.index)

    @cached_property
    def runs(self) -> tuple[int, ...]:
        """The full dimension as lengths of alternating stretches, owned and rest in turns; the first can be 0."""
        assert self.dim is not None
        is_rest = np.zeros(self.size, dtype=np.bool_)
        is_rest[self.index[self.dim]] = True
        borders = np.flatnonzero(np.diff(is_rest)) + 1
        lengths = np.diff(np.concatenate([[0], borders, [self.size]])).tolist()
        return (0, *lengths) if is_rest[0] else tuple(lengths)


def rests(plan: Plan, rank: int) -> dict[str, tuple[Rest, ...]]:
    """The rests of each parameter that ``rank`` does not own whole, in the order in which they are joined."""
    if plan.masking == "forward":
        return {}
    found = ((name, _rests(plan, name, rank)) for name, tensor in plan.state.items() if tensor.kind == "parameter")
    return {name: parts for name, parts in found if parts}


def with_rests(capture: Capture, plan: Plan, rank: int) -> Capture:
    """The capture with the rests among its buffers, outside of ``state_dict()``."""
    described = {
        rest.name: StateTensor(rest.shape, capture.state[rest.parameter].dtype, "buffer", persistent=False)
        for parts in rests(plan, rank).values()
        for rest in parts
    }
    return replace(capture, state={**capture.state, **described})


def _rests(plan: Plan, name: str, rank: int) -> tuple[Rest, ...]:
    shape, kept = plan.state[name].shape, plan.kept(name, rank)
    everything = tuple(np.arange(size, dtype=np.int64) for size in shape)
    if kept is None:
        return (Rest(f"{name}_rest", name, None, everything, 0),)
    parts = []
    for dim, size in enumerate(shape):
        if len(kept[dim]) < size:
            others = np.setdiff1d(everything[dim], kept[dim], assume_unique=True)
            # Dimensions before this one are joined already, those after it are not.
            index = (*everything[:dim], others, *kept[dim + 1 :])
            parts.append(Rest(f"{name}_rest{dim}", name, dim, index, size))
    return tuple(parts)
