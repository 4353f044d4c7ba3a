"""The way of gradients and values along the levels of a plan, for one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sdp_compile.ownership.levels import Levels
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.streams import Begun, Pending, Step
from sdp_compile.runtime.levels.arithmetic import Operation, apart
from sdp_compile.runtime.levels.hops import Hop


@dataclass(frozen=True)
class Errand:
    """What travels together: flat tensors that have their owners' chunks one after the other.

    Attributes:
        owners: The owners of each tensor.
        what: What it is called in errors: "round 3 of gradients".
        purpose: What the traffic is counted as: "gradients".
    """

    owners: Sequence[OwnerSet]
    what: str
    purpose: str


class Route:
    """What one worker does in its groups, level by level.

    Args:
        levels: The levels of the plan.
        groups: The workers' process groups, with one for each level.
    """

    def __init__(self, levels: Levels, groups: Groups) -> None:
        self.levels, self.groups = levels, groups
        self._members = cache(self._find_members)
        self.chunk_order = cache(levels.in_chunk_order)
        """Returns owners in the order of their chunks; see `Levels.in_chunk_order`."""

    def there(self, errand: Errand, operation: Operation = "sum", wide: bool = False) -> list[Step]:
        """Returns the steps after which each owner has the sum or maximum of its chunk of each tensor.

        Args:
            errand: What travels.
            operation: What becomes of the owners' tensors.
            wide: Whether the sums of the last step stay in float32 where the tensors are in half precision.
        """
        return [self._scatter(number, errand, operation, wide) for number in range(len(self.levels))]

    def back(self, errand: Errand) -> list[Step]:
        """Returns the steps after which each owner has the chunks of all owners."""
        return [self._gather(number, errand) for number in reversed(range(len(self.levels)))]

    def round_trip(self, errand: Errand, operation: Operation = "sum") -> list[Step]:
        """Returns the steps after which each owner has the sum or maximum of each tensor, which are overwritten."""
        homes: dict[int, Sequence[Tensor]] = {}
        last = len(self.levels) - 1
        there = [self._scatter(number, errand, operation, False, homes) for number in range(last + 1)]
        back = [self._gather(number, errand, homes) for number in range(last, -1, -1)]
        if self.levels and self.levels[last].kind == "class":  # nothing happens between its two steps
            return [*there[:-1], self._all_reduce(last, errand, operation), *back[1:]]
        return there + back

    def join(self, level: int, errand: Errand) -> Step:
        """Returns the step after which the members of a level's group have the tensors of all of them."""
        return self._gather(level, errand)

    @torch.no_grad()
    def run(self, steps: Sequence[Step], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Takes steps, one after the other. Collective.

        Args:
            steps: What `there`, `back` or `round_trip` returned.
            tensors: Flat tensors on a device for collectives.
        """
        self.groups.settle()
        device = tensors[0].device if tensors else self.groups.idle_device
        state: Sequence[Tensor] | Pending = tensors
        for step in steps:
            state = Pending(step, state, device)
        return state.results() if isinstance(state, Pending) else list(state)

    def _scatter(
        self,
        number: int,
        errand: Errand,
        operation: Operation,
        wide: bool,
        homes: dict[int, Sequence[Tensor]] | None = None,
    ) -> Step:
        is_last = number == len(self.levels) - 1
        is_wide, is_kept = wide and is_last, homes is None and is_last

        def act(hop: Hop, flats: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Begun:
            if homes is not None:
                homes[number] = flats
            begun = hop.scatter(flats, owners, operation, errand.purpose, is_wide)
            return Begun(begun.works, lambda: apart(begun.end())) if is_kept else begun

        return self._step(number, errand, act)

    def _gather(self, number: int, errand: Errand, homes: dict[int, Sequence[Tensor]] | None = None) -> Step:
        """The step that joins chunks, in the tensors that were given to the scatter of the same level, if any."""

        def act(hop: Hop, chunks: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Begun:
            return hop.gather(chunks, owners, errand.purpose, None if homes is None else homes.pop(number))

        return self._step(number, errand, act)

    def _all_reduce(self, number: int, errand: Errand, operation: Operation) -> Step:
        return self._step(number, errand, lambda hop, flats, _: hop.all_reduce(flats, operation, errand.purpose))

    def _step(
        self, number: int, errand: Errand, act: Callable[[Hop, Sequence[Tensor], Sequence[OwnerSet]], Begun]
    ) -> Step:
        groups, level = self.groups, self.levels[number]
        group = level.group(groups.rank)

        def begin(tensors: Sequence[Tensor]) -> Begun:
            if level.kind == "class" and not tensors:  # then the others have nothing, either
                return Begun((), list)
            library = level.kind == "class" and groups.has_library(tensors[0].device)
            device = tensors[0].device if tensors else groups.idle_device
            hop = Hop(
                groups.raw_group_of(group), group, groups.rank, library, groups.traffic, device, groups.peers_are_fake
            )
            return act(hop, tensors, [self._members(number, owners) for owners in errand.owners])

        return Step(number, begin, lambda: explained(group, errand.what, groups.rank))

    def _find_members(self, number: int, owners: OwnerSet) -> OwnerSet:
        return self.levels[number].members(self.groups.rank, owners)


def padded(flat: Tensor, owners: OwnerSet) -> Tensor:
    """Returns a flat tensor that its owners can split evenly, with zeros at the end."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % len(owners)))
