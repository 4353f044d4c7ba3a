"""The norm of a gradient of the full model, from what each worker adds to it: every element counts once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.meeting import meet


class Engine(Protocol):
    """What this package asks of the gradient engine that averages a gradient."""

    @property
    def holdings(self) -> Holdings:
        """Which tensors the worker holds."""

    @property
    def groups(self) -> Groups:
        """The workers' process groups."""

    @property
    def pending(self) -> bool:
        """Whether gradients have been accumulated since the last reduction."""


@dataclass(frozen=True)
class Share:
    """What this worker adds to the norm of one gradient of the full model.

    Attributes:
        engine: What averages the gradient.
        name: The parameter.
        norms: The norms of the parts that this worker counts.
    """

    engine: Engine
    name: str
    norms: Sequence[Tensor]


def norms_of(tensors: Sequence[Tensor], order: float) -> list[Tensor]:
    """Returns the norm of each tensor, a scalar in its real dtype or in float32 for half precision."""
    if not tensors:
        return []
    wide = [torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None for tensor in tensors]
    if len(tensors) < 3 or len(set(wide)) > 1:
        return [
            torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor, dtype in zip(tensors, wide, strict=True)
        ]
    return list(torch._foreach_norm(tuple(tensors), order, dtype=wide[0]))


def norm_of_norms(norms: Sequence[Tensor], order: float) -> Tensor:
    """Returns the norm of everything of which ``norms`` are the parts' norms, a scalar in float64."""
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    stacked = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms])
    result: Tensor = torch.linalg.vector_norm(stacked, order)
    return result


def first_owned(gradient: Tensor, name: str, holdings: Holdings) -> list[Tensor]:
    """Returns the elements of a worker's gradient whose first owner is this worker, in any number of tensors."""
    known = _first_owned.setdefault(holdings, {})
    if name not in known:
        pieces = [piece for piece in holdings.plan.pieces(name) if piece.numel and piece.owners]
        own = [piece for piece in pieces if piece.owners[0] == holdings.rank]
        known[name] = sum(piece.numel for piece in own), tuple(holdings.region(piece) for piece in own)
    count, regions = known[name]
    if count == gradient.numel():
        return [gradient] if count else []
    return [region.read(gradient) for region in regions]


_first_owned: WeakKeyDictionary[Holdings, dict[str, tuple[int, tuple[Region, ...]]]] = WeakKeyDictionary()
"""How many elements of its tensors a worker counts, and where they lie."""


def check_order(order: float, what: str) -> None:
    """Raises `SDPError` unless ``order`` is the order of a norm; ``what`` names the function."""
    if not order > 0:
        raise SDPError(f"norm_type of {what} must be positive, got {order}. It may be infinite.")


def check_averaged(engine: Engine, what: str) -> None:
    """Raises `DistributedError` if gradients were accumulated and not averaged; ``what`` names the function."""
    if engine.pending:
        raise DistributedError(
            f"{what} got gradients that were accumulated under no_sync() and differ between workers. Run the last "
            "backward of a step outside no_sync(), or call sync_gradients() first."
        )


def common_groups(engines: Iterable[Engine], what: str) -> Groups:
    """Returns the groups of models that are used together.

    Raises:
        SDPError: If they were compiled for different workers.
    """
    first, *others = {id(engine.groups.raw_group): engine.groups for engine in engines}.values()
    if others:
        raise SDPError(
            f"{what} got gradients of models that were compiled for different process groups. Call it once for each "
            "of the models."
        )
    return first


def holders(names: Mapping[Engine, Iterable[str]], workers: int) -> OwnerSet:
    """Returns the workers that hold anything of these parameters, which are named by the engine of their model."""
    everyone, found = tuple(range(workers)), set[int]()
    for engine, own in names.items():
        if engine.holdings.lowering == "masked":  # full-size parameters everywhere
            return everyone
        for name in own:
            found.update(*(piece.owners for piece in engine.holdings.plan.pieces(name) if piece.numel))
            if len(found) == workers:
                return everyone
    return tuple(sorted(found))


def full_norm(shares: Sequence[Share], others: Sequence[Tensor], order: float) -> Tensor:
    """Returns the norm over gradients of the full model, and over other tensors that all workers have alike.

    Collective among the workers that hold anything of these gradients.

    Args:
        shares: What this worker adds to each gradient.
        others: The norms of the other tensors.
        order: The order of the norm.

    Returns:
        A scalar in float64, equal on all workers.

    Raises:
        SDPError: If not all workers can take part, or a tensor is distributed in another way.
        DistributedError: If gradients are not averaged, or the other tensors differ between workers.
    """
    what = "The gradient norm of torch"
    check_order(order, what)
    names: dict[Engine, list[str]] = {}
    for share in shares:
        names.setdefault(share.engine, []).append(share.name)
    for engine in names:
        check_averaged(engine, what)
    groups = common_groups(names, what)
    owners = holders(names, groups.workers)
    for other in others:
        if type(other) is not Tensor:
            raise SDPError(
                f"{what} got gradients of a compiled model together with a {type(other).__name__}, which is "
                "distributed in another way. Compute their norms apart and combine them."
            )
    if len(owners) < groups.workers and others:
        raise SDPError(
            f"{what} got other tensors, and only such parameters of a compiled model of which workers "
            f"{_without(owners, groups.workers)} hold nothing, so they cannot take part. Compute their norms apart, or "
            "pass all of the model's parameters."
        )
    own = norm_of_norms([norm for share in shares for norm in share.norms], order)
    return gather_norm(own, norm_of_norms(others, order) if others else None, order, owners, groups)


def gather_norm(own: Tensor, other: Tensor | None, order: float, owners: OwnerSet, groups: Groups) -> Tensor:
    """Returns the norm of what all workers hold. Collective among ``owners``.

    Args:
        own: The norm of what only this worker counts.
        other: The norm of what all workers have alike, which counts once.
        order: The order of the norm.
        owners: The workers that take part, this one among them.
        groups: The workers' process groups.

    Raises:
        DistributedError: If ``other`` differs between workers.
    """
    if len(owners) == groups.workers > 1:
        meet("in the gradient norm", groups)
    device = groups.device
    row = torch.stack([own.to(device), torch.zeros_like(own, device=device) if other is None else other.to(device)])
    with explained(owners, "the gradient norm", groups.rank):
        rows = groups.gather_row(row, owners)
    groups.traffic.add("control", "all_gather", rows.nbytes, len(owners))
    # Rounding may differ between devices. Asking a GPU costs a synchronisation, so only where there are others.
    if other is not None and not torch.isclose(rows[:, 1], rows[0, 1], rtol=1e-4, atol=0, equal_nan=True).all():
        raise DistributedError(
            "The gradient norm of torch got tensors besides the compiled model's whose norms differ between workers: "
            f"{', '.join(f'{value:.4g}' for value in rows[:, 1].tolist()[:16])}. Average these gradients first, for "
            "example with DistributedDataParallel around that part of the model, or clip them apart."
        )
    result: Tensor = torch.linalg.vector_norm(torch.cat([rows[:, 0], rows[:1, 1]]), order)
    return result


def _without(owners: OwnerSet, workers: int) -> str:
    missing = [str(worker) for worker in range(workers) if worker not in owners]
    return ", ".join(missing[:16]) + (", ..." if len(missing) > 16 else "")
