"""Which size of a bucket fits the links between the workers of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

SMALLEST = 16 * 2**20
"""In smaller rounds some workers have much to send and others little, so that most of them wait."""


def fitting_bucket_bytes(owned: float, levels: Sequence[tuple[float, float]]) -> int:
    """Returns how much of a round a worker should hold, in bytes.

    Every round costs each level a latency, so few large rounds spend less on it. But nothing travels before the first
    round is complete, and nothing hides the last one. If each round costs ``a`` seconds and each byte ``b``, the best
    size is about ``sqrt(owned * a / b)``.

    Args:
        owned: Bytes of all gradients that a worker holds.
        levels: For each level the seconds that a round takes there, both ways, however small it is, and the seconds
            that each further byte of what a worker holds of the round takes.

    Returns:
        A power of two, at least ``SMALLEST``.
    """

    def seconds(nbytes: int) -> float:
        rounds = ceil(owned / nbytes)
        of_level = [latency + per_byte * min(nbytes, owned) for latency, per_byte in levels]
        return rounds * max(of_level, default=0.0) + sum(of_level)

    sizes = [SMALLEST]
    while sizes[-1] < owned:
        sizes.append(2 * sizes[-1])
    return min(sizes, key=seconds)
