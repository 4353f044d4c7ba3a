"""What a ``view`` does to dimensions: other dimensions over the same elements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdp_compile.structure.axes import Axis, Dim, Reason, expand, fresh, refine_product, size, unify_ends


def regroup(dims: Sequence[Dim], sizes: Sequence[int], reason: Reason) -> tuple[list[Dim], list[list[int]]]:
    """What a ``view`` does: the dimensions of ``sizes`` over the same elements.

    Also returns, for each new dimension, the numbers of the old ones that it draws from.
    """
    result: list[Dim] = []
    sources: list[list[int]] = []
    old = 0
    new = 0
    while new < len(sizes) or old < len(dims):
        # The smallest next group of old and of new dimensions over the same elements.
        old_start, new_start = old, new
        old_size = new_size = 1
        if old < len(dims):
            old_size, old = size(dims[old]), old + 1
        if new < len(sizes) and old_size != 1:
            new_size, new = sizes[new], new + 1
        elif new < len(sizes) and sizes[new] == 1:
            new += 1
        while old_size != new_size:
            if old_size < new_size:
                old_size, old = old_size * size(dims[old]), old + 1
            else:
                new_size, new = new_size * sizes[new], new + 1
        group = [axis for dim in dims[old_start:old] for axis in dim]
        result += _take(group, sizes[new_start:new], reason)
        sources += [list(range(old_start, old))] * (new - new_start)
    return result, sources


def regroup_free(dims: Sequence[Dim], sizes: Sequence[int], reason: Reason) -> list[Dim]:
    """What a ``view`` does whose sizes look different: those of ``dims`` are free, and every call makes them fit.

    Dimensions that are equal on the left stay; of the others, what has a fixed size is followed from both ends.
    """
    same = 0
    while same < min(len(dims), len(sizes)) and size(dims[same]) == sizes[same]:
        same += 1
    rest = [axis for dim in dims[same:] for axis in expand(dim)]
    return [*dims[:same], *_followed(rest, sizes[same:], reason)]


def _followed(axes: list[Axis], sizes: Sequence[int], reason: Reason) -> list[Dim]:
    """New dimensions of ``sizes`` over the elements of ``axes``, of which only the ends are known."""
    dims = [fresh(length) for length in sizes]
    unify_ends(axes, [axis for dim in dims for axis in dim], reason)
    return dims


def _take(group: Iterable[Axis], sizes: Sequence[int], reason: Reason) -> list[Dim]:
    remaining = list(expand(group))[::-1]
    result: list[Dim] = []
    for position, length in enumerate(sizes):
        taken: list[Axis] = []
        while length > 1:
            axis = remaining.pop().find()
            if axis.factors is not None:
                remaining.extend([*expand((axis,))][::-1])
            elif length % axis.size == 0:
                taken.append(axis)
                length //= axis.size
            elif axis.size % length == 0:
                refine_product(axis, length, reason)
                remaining.extend([*expand((axis,))][::-1])
            else:
                first, *others = _followed([axis, *remaining[::-1]], (length, *sizes[position + 1 :]), reason)
                return [*result, (*taken, *first), *others]
        result.append(tuple(taken))
    return result
