"""A parameter in two parts, as backward masking holds it: what the worker owns and the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import fx

from sdp_compile.ops.narrow import Runs


@dataclass(frozen=True)
class Channels:
    """The indices of one dimension: lengths of alternating stretches, the first of them owned."""

    runs: Runs

    def flags(self) -> list[bool]:
        """Returns for each index whether it is owned."""
        return [number % 2 == 0 for number, size in enumerate(self.runs) for _ in range(size)]

    @classmethod
    def of(cls, flags: Sequence[bool]) -> Channels:
        """Returns the stretches of a list that says for each index whether it is owned."""
        runs = [0]
        for flag in flags:
            if flag != (len(runs) % 2 == 1):
                runs.append(0)
            runs[-1] += 1
        return cls(tuple(runs))


@dataclass(frozen=True)
class Split:
    """A tensor of the graph in two parts along ``dim``; ``channels`` says which of its indices are owned."""

    owned: fx.Node
    rest: fx.Node
    dim: int
    channels: Channels

    @property
    def runs(self) -> Runs:
        """The lengths of alternating stretches along ``dim``, the first of them owned."""
        return self.channels.runs


NarrowCall: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of `sdp_compile.ops.narrow` and its arguments."""
