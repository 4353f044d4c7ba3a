"""Sets of workers as text; large sets are described by their period."""

from __future__ import annotations

from collections.abc import Sequence

from sdp_compile.inspector.plain import ranges

MOST_RANGES = 8
LONGEST_PERIOD = 64


def members(numbers: Sequence[int], workers: int) -> str:
    """Writes ascending worker numbers as ``0-3, 7``, or as ``0-3 of every 8`` if they are many and periodic."""
    text = ranges(numbers)
    if "..." in text:
        for period in range(2, LONGEST_PERIOD + 1):
            within = sorted({number % period for number in numbers})
            if workers % period == 0 and len(within) * (workers // period) == len(numbers):
                return f"{ranges(within)} of every {period}"
    return ranges(numbers, MOST_RANGES)


def named(numbers: Sequence[int], workers: int) -> str:
    """Returns ``worker 3``, ``workers 0-3`` or ``500 workers: 0-3 of every 8``."""
    if len(numbers) == 1:
        return f"worker {numbers[0]}"
    text = members(numbers, workers)
    is_short = "..." not in text and "every" not in text
    return f"workers {text}" if is_short else f"{len(numbers)} workers: {text}"
