"""The parts of the parameters that a worker owns together with others, dealt to as many shares of about equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.meeting import mixed, share_of_zero
from sdp_compile.runtime.gradients.engine import GradientEngine
from sdp_compile.runtime.owners.checksums import LARGEST_BYTES
from sdp_compile.structure.layout import Indices, families

SHARES = 16
"""The number of shares. One share is compared at each step."""

_SMALLEST_BYTES = 2**14
"""Smaller parts would cost more calls than they even out."""

_LARGEST_BYTES = LARGEST_BYTES // 2
"""Larger parts would need much memory for their checksums."""

_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a piece of a parameter.

    Attributes:
        name: The parameter.
        identifier: The same on all owners, and for no other part.
        label: What the part is called in errors.
        region: Where it lies in this worker's tensor.
        share: The number of its share.
        factor: This worker's `share_of_zero` among the part's owners, times a number of the part's own.
    """

    name: str
    identifier: str
    label: str
    region: Region
    share: int
    factor: int


_known: WeakKeyDictionary[GradientEngine, Sequence[Part]] = WeakKeyDictionary()


def owned_parts(engine: GradientEngine) -> Sequence[Part]:
    """Returns the parts that this worker owns together with others. All workers deal all parts to the same shares."""
    if engine not in _known:
        _known[engine] = _make(engine)
    return _known[engine]


def holder_factor(engine: GradientEngine, name: str) -> int:
    """Returns this worker's `share_of_zero` among those that hold a part of a parameter."""
    plan, rank = engine.holdings.plan, engine.holdings.rank
    holders = {owner for piece in plan.pieces(name) if piece.numel for owner in piece.owners}
    if engine.holdings.lowering == "masked":
        holders = set(range(plan.workers))
    return share_of_zero(rank, sorted(holders)) * mixed(engine.key(name)) if rank in holders else 0


def _make(engine: GradientEngine) -> list[Part]:
    holdings, plan = engine.holdings, engine.holdings.plan
    pieces = [
        (number, piece, piece.numel * tensor.dtype.itemsize)
        for name, tensor in plan.state.items()
        if tensor.kind == "parameter"
        for number, piece in enumerate(plan.pieces(name))
        if len(piece.owners) > 1 and piece.numel
    ]
    limit = sum(nbytes for _, _, nbytes in pieces) // (4 * SHARES)
    limit = min(max(limit, _SMALLEST_BYTES), _LARGEST_BYTES)
    loads, result = [0] * SHARES, []
    for number, piece, nbytes in pieces:
        rows = piece.shape[0] if piece.shape else 1
        step = max(limit * rows // nbytes, 1)
        region = holdings.region(piece) if is_member(holdings.rank, piece.owners) else None
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            share = loads.index(min(loads))
            loads[share] += nbytes * (stop - start) // rows
            if region is not None:
                own = Region((region.index[0][start:stop], *region.index[1:])) if piece.shape else region
                identifier = f"{engine.key(piece.name)}:{number}:{start}"
                factor = share_of_zero(holdings.rank, piece.owners) * mixed(identifier)
                result.append(Part(piece.name, identifier, label(plan, piece, start, stop), own, share, factor))
    return result


def label(plan: Plan, piece: Piece, start: int = 0, stop: int | None = None) -> str:
    """Returns the name of a parameter with the indices of some rows of a piece, and the units that they belong to."""
    shape = plan.state[piece.name].shape
    rows = [piece.index[0][start:stop], *piece.index[1:]] if shape else []
    extents = [_extent(index, size) for index, size in zip(rows, shape, strict=True)]
    where = "" if all(extent == ":" for extent in extents) else f"[{', '.join(extents)}]"
    cut = list(dict.fromkeys(family for layout in plan.layouts[piece.name] for family in families(layout)))
    block = plan.block_family
    if block is not None and piece.name in plan.members:
        return f"{piece.name!r}{where} (unit {plan.members[piece.name]} of {block!r})"
    if len(cut) != 1:
        return f"{piece.name!r}{where}"
    units = [unit for unit, owners in enumerate(plan.owners(cut[0])) if owners == piece.owners]
    shown = ", ".join(map(str, units[:_SHOWN])) + (", ..." if len(units) > _SHOWN else "")
    return f"{piece.name!r}{where} (units {shown} of {cut[0]!r})" if units else f"{piece.name!r}{where}"


def _extent(index: Indices, size: int) -> str:
    first, last = int(index[0]), int(index[-1])
    if len(index) == size:
        return ":"
    if last - first + 1 == len(index):
        return f"{first}:{last + 1}"
    shown = ", ".join(map(str, index[:_SHOWN].tolist())) + (", ..." if len(index) > _SHOWN else "")
    return f"({shown})"
