"""Quantities as text."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Writes a number of bytes: ``512 B``, ``49.4 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


def metric(number: float) -> str:
    """Writes a number with a metric prefix: ``252.5 k``, ``1.2 G``."""
    for prefix in ("", " k", " M", " G", " T"):
        if number < 1000:
            return f"{number:.1f}{prefix}" if prefix else f"{number:.0f}"
        number /= 1000
    return f"{number:,.1f} P"
