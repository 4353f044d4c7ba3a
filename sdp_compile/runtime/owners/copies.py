"""What the owners of a unit hold alike, value by value and state by state, and whether it is finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.meeting import mixed, share_of_zero
from sdp_compile.runtime.gradients.engine import GradientEngine
from sdp_compile.runtime.owners.comparison import Item
from sdp_compile.runtime.owners.parts import owned_parts


@dataclass(frozen=True, eq=False)
class OwnState:
    """The state of one parameter in this worker's optimizer.

    Attributes:
        entries: What the optimizer holds for it.
        per_element: The names of the states with one value per element, the same on all owners.
        scalars: The names of the others, likewise.
        prefix: Tells apart several optimizers.
    """

    entries: MutableMapping[str, Any]
    per_element: Sequence[str]
    scalars: Sequence[str]
    prefix: str = ""


@dataclass(frozen=True, eq=False)
class OwnCopy:
    """What this worker holds of something that some workers must hold alike.

    Attributes:
        identifier: The same on these workers, and for nothing else.
        kind: ``"value"`` or ``"state"``.
        label: What it is called in errors.
        parameter: The parameter that it belongs to.
        state: The name of the optimizer's state; empty for the value.
        tensor: The tensor that holds it; None if this worker has none.
        region: Where it lies in the tensor; None for all of it.
        factor: This worker's `share_of_zero` among these workers, times a number of the copy's own.
        entries: Where a plain number comes from.
    """

    identifier: str
    kind: str
    label: str
    parameter: str
    state: str
    tensor: Tensor | None
    region: Region | None
    factor: int
    entries: MutableMapping[str, Any] | None = None

    def read(self) -> Tensor | None:
        """Returns the values, perhaps a view; None without any."""
        return self.tensor if self.tensor is None or self.region is None else self.region.read(self.tensor)

    def write(self, values: Tensor) -> None:
        """Replaces the values."""
        assert self.tensor is not None
        if self.entries is not None:
            self.entries[self.state] = type(self.entries[self.state])(values.item())
        elif self.region is None:
            self.tensor.copy_(values.reshape(self.tensor.shape))
        else:
            self.region.write(self.tensor, values)

    @property
    def item(self) -> Item:
        """The copy as the workers compare it."""
        return Item(self.identifier, self.kind, self.label, self.read, 0, self.factor)


def own_copies(engine: GradientEngine, states: Mapping[str, Sequence[OwnState]]) -> Iterator[OwnCopy]:
    """Yields what this worker owns together with others, in one order on all of them.

    Parts that it holds without owning them are left out: under backward masking, and in the masked lowering.

    Args:
        engine: The engine of the module. The values of a copy that nothing steps are left out.
        states: The states of the parameters that this worker holds, by name; those of a sharded optimizer have one
            holder each.
    """
    parameters = {name: parameter for parameter, name in engine.names().items()}
    for part in owned_parts(engine):
        if part.name not in parameters:
            continue
        if engine.values_are_compared:
            tensor = parameters[part.name].detach()
            label = f"The value of {part.label}"
            yield OwnCopy(f"value:{part.identifier}", "value", label, part.name, "", tensor, part.region, part.factor)
        for own in states.get(part.name, ()):
            for key in own.per_element:
                value = own.entries.get(key)
                identifier = f"state {own.prefix}{key}:{part.identifier}"
                label = f"The optimizer's state {key!r} of {part.label}"
                factor = part.factor * mixed(key)
                yield OwnCopy(identifier, "state", label, part.name, key, value, part.region, factor)
    for name, several in states.items():
        for own in several:
            yield from _scalars(engine, name, own)


def _scalars(engine: GradientEngine, name: str, own: OwnState) -> Iterator[OwnCopy]:
    """Yields the states that belong to the whole of a parameter, and so to all owners of any part of it."""
    plan, rank = engine.holdings.plan, engine.holdings.rank
    pieces = [piece for piece in plan.pieces(name) if piece.numel]
    owners = sorted({owner for piece in pieces for owner in piece.owners})
    if len(owners) < 2 or rank not in owners:
        return
    has_lone_owners = any(len(piece.owners) == 1 for piece in pieces)
    for key in own.scalars:
        if key == "step" and has_lone_owners:
            continue  # who has a part alone may have taken another number of steps
        value = own.entries.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not is_number and not isinstance(value, Tensor):
            continue  # a text or a list: all of its bits are in the checkpoint of whoever writes it
        identifier = f"state {own.prefix}{key}:{engine.key(name)}"
        label = f"The optimizer's state {key!r} of {name!r}"
        factor = share_of_zero(rank, owners) * mixed(identifier)
        tensor = (
            torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
            if is_number
            else value
        )
        entries = own.entries if is_number else None
        yield OwnCopy(identifier, "state", label, name, key, tensor, None, factor, entries)


def not_finite(tensors: Sequence[Tensor]) -> list[int]:
    """Returns the positions of the tensors with an element that is infinite or NaN.

    A sum is finite only if all elements are. It is what a processor computes fastest.
    """
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for position, tensor in enumerate(tensors):
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
            by_device.setdefault(tensor.device, []).append((position, tensor.detach()))
    found = []
    for members in by_device.values():
        good = torch.stack([_sum(tensor).isfinite() for _, tensor in members]).tolist()
        found += [
            position
            for (position, tensor), known in zip(members, good, strict=True)
            if not known and not bool(_plain(tensor).isfinite().all())
        ]
    return sorted(found)


def _sum(tensor: Tensor) -> Tensor:
    tensor = _plain(tensor)
    return tensor.sum(dtype=torch.float32) if tensor.is_floating_point() and tensor.itemsize < 4 else tensor.sum()


def _plain(tensor: Tensor) -> Tensor:
    """Returns the values in a dtype that has a sum."""
    return tensor.float() if tensor.itemsize == 1 else tensor
