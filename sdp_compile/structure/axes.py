"""Axes: the independent index spaces of a network, as a union-find that can be refined.

A dimension (`Dim`) is a row-major product of axes. Two dimensions that must be cut together are unified. An axis is
refined at most once, globally: into a product (a ``view`` splits it) or into a sum (``split``, ``slice`` and ``cat``
cut it into parts). Refinements are looked through lazily, so that a rule that ran before a refinement stays valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod
from typing import TypeAlias

from torch import fx

from sdp_compile.ir.sizes import FreeSize


@dataclass(frozen=True)
class Reason:
    """Why an axis must stay whole: a sentence, and the graph node that needs it (None for the model's border)."""

    text: str
    node: fx.Node | None = None


class Axis:
    """One index space of ``size`` units; use it through its `AxisSpace`."""

    __slots__ = ("factors", "frozen", "parent", "parts", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.parent: Axis | None = None
        self.factors: Dim | None = None
        self.parts: tuple[Dim, ...] | None = None

    def find(self) -> Axis:
        root = self
        while root.parent is not None:
            root = root.parent
        axis = self
        while axis.parent is not None:  # path compression
            axis.parent, axis = root, axis.parent
        return root


Dim: TypeAlias = tuple[Axis, ...]

_EMPTY = Reason("it has no units")

_LONGEST_CHAIN = 16
"""Units that a shift of an axis against itself may make one; with more of them there is nothing left to cut."""


def expand(dim: Iterable[Axis]) -> Iterator[Axis]:
    """The roots that a dimension is the product of, looked through product refinements."""
    for axis in dim:
        root = axis.find()
        if root.factors is None:
            yield root
        else:
            yield from expand(root.factors)


def size(dim: Dim) -> int:
    return prod(axis.size for axis in dim)


def fresh(length: int, frozen: Reason | None = None) -> Dim:
    """A new dimension; one of length 1 has no axis, since there is nothing to cut, and one of length 0 is frozen."""
    return () if length == 1 else (Axis(length, _EMPTY if frozen is None and _is_empty(length) else frozen),)


def _is_empty(length: int) -> bool:
    return isinstance(length, int) and not isinstance(length, FreeSize) and length == 0


def freeze(dim: Iterable[Axis], reason: Reason) -> None:
    """Forbid any cut of a dimension, and of everything that it is refined into."""
    for axis in dim:
        root = axis.find()
        if root.frozen is not None:
            continue
        root.frozen = reason
        for child in (root.factors,) if root.factors is not None else root.parts or ():
            freeze(child, reason)


def is_free(axis: Axis) -> bool:
    """Whether the number of units differs between calls of the model."""
    return isinstance(axis.size, FreeSize)


def unify(a: Dim, b: Dim, reason: Reason) -> None:
    """Declare that two dimensions of equal size are cut together; where their factors do not match, those freeze.

    The sizes may look different although every call makes them equal: a linear layer after a flattened image of free
    height and width fixes what their product must be.
    """
    if size(a) != size(b):
        if any(map(is_free, expand((*a, *b)))):
            positions = Reason("its positions of a free size are not units", reason.node)
            unify_ends(list(expand(a)), list(expand(b)), positions)
        else:
            freeze((*a, *b), reason)
        return
    left, right = list(expand(a))[::-1], list(expand(b))[::-1]
    while left and right:
        x, y = left.pop().find(), right.pop().find()
        if x.factors is not None or y.factors is not None:  # refined by an earlier step of this very loop
            left.extend([*expand((x,))][::-1])
            right.extend([*expand((y,))][::-1])
        elif x.size == y.size:
            _union(x, y, reason)
        else:
            larger, smaller, stack = (x, y, left) if x.size > y.size else (y, x, right)
            if larger.size % smaller.size:
                unify_ends([x, *left[::-1]], [y, *right[::-1]], reason)
                return
            refine_product(larger, smaller.size, reason)
            stack.extend([*expand((larger,))][::-1])
            (right if stack is left else left).append(smaller)


def share(a: Dim, b: Dim) -> bool:
    """Whether two dimensions of one size have common outermost units, so that `unify` does not freeze all of both."""
    first, second = next(expand(a), None), next(expand(b), None)
    if first is None or second is None:
        return False
    common = gcd(first.size, second.size)
    return common > 1 and not any(
        root.size != common and any(size(part) % (root.size // common) for part in root.parts or ())
        for root in (first, second)
    )


def unify_ends(a: list[Axis], b: list[Axis], reason: Reason) -> None:
    """Unify the outermost and the innermost units that two dimensions of one size share; what lies between freezes.

    6 groups of 4 and 4 groups of 6 share 2 groups of 12: both begin at the multiples of 12.
    """
    _unify_end(a, b, 0, reason)
    _unify_end(a, b, -1, reason)
    freeze((*a, *b), reason)


def _unify_end(a: list[Axis], b: list[Axis], end: int, reason: Reason) -> None:
    """Unify what two lists of axes share at one end, 0 or -1, and take it away from them."""
    while a and b:
        x, y = _at_end(a, end), _at_end(b, end)
        common = gcd(x.size, y.size)
        if common == 1 or is_free(x) or is_free(y):
            return
        if x.size == y.size:
            del a[end], b[end]
            _union(x, y, reason)
            continue
        for axis in (x, y):
            if axis.size != common:
                refine_product(axis, common if end == 0 else axis.size // common, reason)


def _at_end(axes: list[Axis], end: int) -> Axis:
    while (root := axes[end].find()).factors is not None:
        axes[slice(0, 1) if end == 0 else slice(-1, None)] = expand((root,))
    return root


def _union(x: Axis, y: Axis, reason: Reason) -> None:
    if x is y:
        return
    if x.frozen is not None or y.frozen is not None:
        freeze((x, y), x.frozen or y.frozen or reason)
    if x.parts is not None and y.parts is not None:
        if x.frozen is None and _is_shifted(x.parts, y.parts):
            freeze((x, y), reason)
        if x.frozen is not None:  # nothing can be cut, so nothing is left to find out
            x.parent = y
            return
        x_parts, y_parts = x.parts, y.parts
        x.parent = y
        boundaries = _boundaries(map(size, x_parts)) | _boundaries(map(size, y_parts))
        fine_x, fine_y = _subdivide(x_parts, boundaries, reason), _subdivide(y_parts, boundaries, reason)
        y.parts = tuple(part for group in fine_y for part in group)
        for part_x, part_y in zip((p for group in fine_x for p in group), y.parts, strict=True):
            unify(part_x, part_y, reason)
    elif x.parts is not None:
        y.parent = x
    else:
        x.parent = y


def _is_shifted(x_parts: Iterable[Dim], y_parts: Iterable[Dim]) -> bool:
    """Whether the two sums hold one axis at offsets a few units apart (``x[1:]`` padded to the size of ``x``).

    Each unit would be the same as its neighbour, and so nearly all of them one, found out unit by unit.
    """
    x_places, y_places = _places(x_parts), _places(y_parts)
    return any(
        0 < abs(mine - theirs) * _LONGEST_CHAIN < axis.size
        for axis in x_places.keys() & y_places.keys()
        if x_places[axis] != y_places[axis]
        for mine in x_places[axis]
        for theirs in y_places[axis]
    )


def _places(parts: Iterable[Dim]) -> dict[Axis, set[int]]:
    """The axes that a sum is composed of, with the offsets of each."""
    places: dict[Axis, set[int]] = {}
    remaining = [(tuple(parts), 0)]
    while remaining:
        dims, start = remaining.pop()
        for dim in dims:
            roots = list(expand(dim))
            if len(roots) == 1 and start not in places.setdefault(roots[0], set()):
                places[roots[0]].add(start)
                remaining.append((roots[0].parts or (), start))
            start += size(dim)
    return places


def _boundaries(sizes: Iterable[int]) -> set[int]:
    total, found = 0, set()
    for length in sizes:
        total += length
        found.add(total)
    return found


def _subdivide(parts: Sequence[Dim], boundaries: set[int], reason: Reason) -> list[list[Dim]]:
    """Cut each part of a sum at those of ``boundaries`` (offsets in the whole sum) that fall inside of it."""
    result, start = [], 0
    for part in parts:
        stop = start + size(part)
        inner = sorted(b for b in boundaries if start < b < stop)
        cuts = [start, *inner, stop]
        lengths = [b - a for a, b in pairwise(cuts)]
        result.append(split(part, lengths, reason) if inner else [part])
        start = stop
    return result


def refine_product(axis: Axis, outer: int, reason: Reason) -> None:
    """Refine a root into ``outer`` x the rest; a sum becomes a product where every part holds whole inner ranges."""
    inner = axis.size // outer
    if axis.parts is None:
        axis.factors = (Axis(outer, axis.frozen), Axis(inner, axis.frozen))
        return
    parts, axis.parts = axis.parts, None
    if any(size(part) % inner for part in parts):
        for part in parts:
            freeze(part, reason)
        axis.frozen = axis.frozen or reason
        axis.factors = (Axis(outer, axis.frozen), Axis(inner, axis.frozen))
        return
    inner_axis, outer_axis = Axis(inner, axis.frozen), Axis(outer, axis.frozen)
    outer_parts = [fresh(size(part) // inner, axis.frozen) for part in parts]
    outer_axis.parts = tuple(outer_parts)
    axis.factors = (outer_axis, inner_axis)
    for part, outer_part in zip(parts, outer_parts, strict=True):
        unify(part, (*outer_part, inner_axis), reason)


def split(dim: Dim, lengths: Sequence[int], reason: Reason) -> list[Dim]:
    """Cut a dimension into consecutive parts; where a part would break an inner factor, everything freezes."""
    axes = list(expand(dim))
    if sum(lengths) != size(dim) or min(lengths) < 0:  # sizes that depend on data
        freeze(axes, reason)
        return [fresh(length, reason) for length in lengths]
    if any(map(_is_empty, lengths)):
        others = iter(split(dim, [length for length in lengths if not _is_empty(length)], reason))
        return [fresh(length) if _is_empty(length) else next(others) for length in lengths]
    if len(lengths) == 1:
        return [dim]
    if not axes:
        return [fresh(length, reason) for length in lengths]
    head, rest = axes[0], tuple(axes[1:])
    if rest:
        inner = size(rest)
        if any(length % inner for length in lengths):
            freeze(axes, reason)
            return [fresh(length, reason) for length in lengths]
        return [(*part, *rest) for part in split((head,), [length // inner for length in lengths], reason)]
    if head.parts is None:
        head.parts = tuple(fresh(length, head.frozen) for length in lengths)
        return list(head.parts)
    boundaries = _boundaries(lengths)
    parts = [part for group in _subdivide(head.parts, boundaries, reason) for part in group]
    head = head.find()
    if head.factors is None:
        head.parts = tuple(parts)
    result: list[Dim] = []
    remaining = parts[::-1]
    for length in lengths:
        group: list[Dim] = []
        while sum(map(size, group)) < length:
            group.append(remaining.pop())
        result.append(concatenate(group))
    return result


def concatenate(parts: Sequence[Dim]) -> Dim:
    """The dimension that holds ``parts`` one after the other."""
    parts = [part for part in parts if not _is_empty(size(part))] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    heads, inner = _without_positions([list(expand(part)) for part in parts])
    axis = Axis(sum(map(size, heads)))
    axis.parts = tuple(heads)
    return (axis, *inner)


def _without_positions(parts: list[list[Axis]]) -> tuple[list[Dim], Dim]:
    """Splits off the positions of a free size that all parts end in, as flattened channels of equal images do."""
    last = parts[0]
    count = 0
    while all(len(part) > count + 1 and _is_position(part[-1 - count], last[-1 - count]) for part in parts):
        count += 1
    start = len(last) - count
    return [tuple(part[: len(part) - count]) for part in parts], tuple(last[start:])


def _is_position(axis: Axis, other: Axis) -> bool:
    """Whether two axes that are never cut have one free size."""
    return is_free(axis) and axis.size == other.size and axis.frozen is not None and other.frozen is not None
