"""Which channels the owned part of a convolution's weight sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sdp_compile.ops.narrow import Geometry, Runs, Seen

aten = torch.ops.aten

_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


@dataclass(frozen=True)
class Channels:
    """The indices of one dimension: lengths of alternating stretches, owned and others in turns."""

    runs: Runs

    def flags(self) -> list[bool]:
        """For each index whether it is owned."""
        return [number % 2 == 0 for number, size in enumerate(self.runs) for _ in range(size)]

    @classmethod
    def of(cls, flags: Sequence[bool]) -> Channels:
        runs = [0]
        for flag in flags:
            if flag != (len(runs) % 2 == 1):
                runs.append(0)
            runs[-1] += 1
        return cls(tuple(runs))


def seen_by(
    node: fx.Node, arguments: Mapping[str, Any], weight: torch.Tensor, dim: int, channels: Channels
) -> tuple[Geometry, Seen] | None:
    """The geometry of a convolution, and what the part of its weight that is owned along ``dim`` sees.

    A weight is (out channels, in channels / groups, ...), transposed (in channels, out channels / groups, ...). None
    where there is no narrow form.
    """
    transposed, groups = node.target in _TRANSPOSED, arguments["groups"]
    geometry = _geometry(arguments, weight, transposed)
    if geometry is None or not isinstance(groups, int) or dim > 1:
        return None
    if groups == 1:
        is_output = (dim == 0) != transposed
        return geometry, ((None, channels.runs, 1) if is_output else (channels.runs, None, 1))
    if transposed:
        return None
    flags = channels.flags()
    if dim == 1:  # the same inputs of each group
        return geometry, (Channels.of(flags * groups).runs, None, groups)
    per_group = len(flags) // groups
    counts = [sum(flags[start : start + per_group]) for start in range(0, len(flags), per_group)]
    if set(counts) == {0, per_group}:  # whole groups, with their inputs
        inputs = [count > 0 for count in counts for _ in range(weight.shape[1])]
        return geometry, (Channels.of(inputs).runs, channels.runs, sum(count > 0 for count in counts))
    return (geometry, (None, channels.runs, groups)) if len(set(counts)) == 1 else None


def _geometry(arguments: Mapping[str, Any], weight: torch.Tensor, transposed: bool) -> Geometry | None:
    """The arguments as ``aten.convolution`` takes them; None for padding that is not the same on both sides."""
    spatial = weight.ndim - 2

    def sizes(name: str) -> list[int]:
        values = list(arguments.get(name, [0]))
        return values * spatial if len(values) == 1 else values

    dilation = sizes("dilation")
    if arguments["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        if any(pad % 2 for pad in total):
            return None
        padding = [pad // 2 for pad in total]
    else:
        padding = [0] * spatial if arguments["padding"] == "valid" else sizes("padding")
    return sizes("stride"), padding, dilation, transposed, sizes("output_padding")
