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
from sdp_compile.runtime.levels.arithmetic import Copies, Operation, apart
from sdp_compile.runtime.levels.hops import Hop
from sdp_compile.runtime.levels.room import Arrangement, Room, arranged_by_peers, arranged_in_order, room_of


def _unchanged(results: Sequence[Tensor]) -> None:
    """Leaves results as they are."""


@dataclass(frozen=True)
class Errand:
    """What travels together: flat tensors that have their owners' chunks one after the other.

    Attributes:
        owners: The owners of each tensor.
        what: What it is called in errors: "round 3 of gradients".
        purpose: What the traffic is counted as: "gradients".
        exchanges: Whether workers of different classes have any of it in common; they must agree.
        room: Where the tensors lie, as `Route.arranged` says; by default they are given to the first step.
        change: Changes sums or maxima in place, before they travel back.
    """

    owners: Sequence[OwnerSet]
    what: str
    purpose: str
    exchanges: bool = True
    room: Room | None = None
    change: Callable[[Sequence[Tensor]], None] = _unchanged

    def rooms(self) -> dict[int, Room]:
        """Returns the rooms of the levels that are known before it travels."""
        return {} if self.room is None else {0: self.room}


class Route:
    """What one worker does in its groups, level by level.

    Args:
        levels: The levels of the plan.
        groups: The workers' process groups, with one for each level.
    """

    def __init__(self, levels: Levels, groups: Groups) -> None:
        self.levels, self.groups = levels, groups
        self._members = cache(self._find_members)
        self._members_of = cache(lambda number, owners: tuple(self._members(number, those) for those in owners))
        self.chunk_order = cache(levels.in_chunk_order)
        """Returns owners in the order of their chunks; see `Levels.in_chunk_order`."""

    def arranged(
        self,
        owners: Sequence[OwnerSet],
        lengths: Sequence[int],
        dtypes: Sequence[torch.dtype],
        device: torch.device,
        returns: bool = True,
    ) -> Arrangement:
        """Returns how tensors lie in the room of an errand, so that nothing is copied before its first step.

        Args:
            owners: The owners of each tensor.
            lengths: The elements of each tensor, which its owners can split evenly.
            dtypes: The dtype of each tensor.
            device: The device on which they travel.
            returns: Whether its steps are a `round_trip`.
        """
        members = [self._members(0, those) if self.levels else those for those in owners]
        by_library = not self.levels or (
            self.levels[0].kind == "class" and (self.groups.has_library(device) or (returns and len(self.levels) == 1))
        )
        if by_library:
            return arranged_in_order(members, lengths, dtypes)
        return arranged_by_peers(self.levels[0].group(self.groups.rank), self.groups.rank, members, lengths, dtypes)

    def there(self, errand: Errand, operation: Operation = "sum", wide: bool = False) -> list[Step]:
        """Returns the steps after which each owner has the sum or maximum of its chunk of each tensor.

        Args:
            errand: What travels.
            operation: What becomes of the owners' tensors.
            wide: Whether the sums of the last step stay in float32 where the tensors are in half precision.
        """
        rooms = errand.rooms()
        return [self._scatter(number, errand, operation, rooms, wide, keep=True) for number in range(len(self.levels))]

    def back(self, errand: Errand) -> list[Step]:
        """Returns the steps after which each owner has the chunks of all owners."""
        return [self._gather(number, errand) for number in reversed(range(len(self.levels)))]

    def round_trip(self, errand: Errand, operation: Operation = "sum") -> list[Step]:
        """Returns the steps after which each owner has the sum or maximum of each tensor, which are overwritten."""
        rooms = errand.rooms()
        last = len(self.levels) - 1
        there = [self._scatter(number, errand, operation, rooms) for number in range(last + 1)]
        back = [self._gather(number, errand, rooms) for number in range(last, -1, -1)]
        if self.levels and self.levels[last].kind == "class":  # nothing happens between its two steps
            return [*there[:-1], self._all_reduce(last, errand, operation, rooms), *back[1:]]
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
        rooms: dict[int, Room],
        wide: bool = False,
        keep: bool = False,
    ) -> Step:
        """The step that adds chunks up; its room is among ``rooms`` until they come back, unless they stay."""
        is_last, purpose, change = number == len(self.levels) - 1, errand.purpose, errand.change

        def act(hop: Hop, tensors: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Begun:
            room = rooms.pop(number, None) or room_of(tensors, owners)
            if not keep:
                rooms[number] = room
            begun = hop.scatter(room, owners, operation, purpose, wide and is_last)

            def end() -> list[Tensor]:
                results = apart(begun.end()) if keep else begun.end()
                change(results)
                return results

            return Begun(begun.works, end) if is_last else begun

        return self._step(number, errand, act)

    def _gather(self, number: int, errand: Errand, rooms: dict[int, Room] | None = None) -> Step:
        """The step that joins chunks, in the room of the scatter of the same level, if any."""
        purpose = errand.purpose

        def act(hop: Hop, chunks: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Begun:
            return hop.gather(chunks, owners, purpose, None if rooms is None else rooms.pop(number))

        return self._step(number, errand, act)

    def _all_reduce(self, number: int, errand: Errand, operation: Operation, rooms: dict[int, Room]) -> Step:
        purpose, change = errand.purpose, errand.change

        def act(hop: Hop, tensors: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Begun:
            room = rooms.pop(number, None) or room_of(tensors, owners)
            begun = hop.all_reduce(room, operation, purpose)

            def end() -> list[Tensor]:
                results = begun.end()
                change(results)
                copies = Copies()
                for flat, result in zip(room.flats, results, strict=True):
                    copies.add(flat, result)
                copies.run()
                return list(room.memory)

            return Begun(begun.works, end)

        return self._step(number, errand, act)

    def _step(
        self, number: int, errand: Errand, act: Callable[[Hop, Sequence[Tensor], Sequence[OwnerSet]], Begun]
    ) -> Step:
        groups, level = self.groups, self.levels[number]
        # Not the errand itself: it has the room, which goes as soon as no step needs it.
        group, what, owners, exchanges = level.group(groups.rank), errand.what, errand.owners, errand.exchanges

        def begin(tensors: Sequence[Tensor]) -> Begun:
            if level.kind == "class" and not tensors:  # then the others have nothing, either
                return Begun((), list)
            library = level.kind == "class" and groups.has_library(tensors[0].device)
            device = tensors[0].device if tensors else groups.idle_device
            hop = Hop(
                groups.raw_group_of(group),
                group,
                groups.rank,
                library,
                groups.traffic,
                device,
                groups.peers_are_fake,
                is_silent=level.kind == "exchange" and not exchanges,
            )
            return act(hop, tensors, self._members_of(number, tuple(owners)))

        return Step(number, begin, lambda: explained(group, what, groups.rank))

    def _find_members(self, number: int, owners: OwnerSet) -> OwnerSet:
        return self.levels[number].members(self.groups.rank, owners)


def padded(flat: Tensor, owners: OwnerSet) -> Tensor:
    """Returns a flat tensor that its owners can split evenly, with zeros at the end."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % len(owners)))
