"""Averages rounds of buckets level by level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.runtime.comm.streams import Step
from sdp_compile.runtime.gradients.reduction import Reduction
from sdp_compile.runtime.levels.pipeline import Pipeline
from sdp_compile.runtime.levels.room import Arrangement, Room
from sdp_compile.runtime.levels.route import Errand, Route


class ByLevels(Reduction):
    """Averages gradients over their owners in a few groups of workers; see `sdp_compile.ownership.levels`.

    Each round of buckets is an errand of a `Pipeline`. A worker sends the rounds in which it has no bucket at once,
    after those before them.

    Args:
        route: What this worker does in its groups.
        buckets: The buckets of this worker.
        exchanges: For each round of all workers, whether classes exchange anything in it.
    """

    def __init__(self, route: Route, buckets: Sequence[Bucket], exchanges: Sequence[bool]) -> None:
        super().__init__(route.groups)
        self.route, self.buckets, self.exchanges = route, tuple(buckets), tuple(exchanges)
        self._of_round: dict[int, list[Bucket]] = {}
        for bucket in buckets:
            self._of_round.setdefault(bucket.round, []).append(bucket)
        self._is_over = False
        self._reset()

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.exchanges)

    def arranged(self, buckets: Sequence[Bucket], dtypes: Sequence[torch.dtype], device: torch.device) -> Arrangement:
        lengths = [bucket.chunk * len(bucket.owners) for bucket in buckets]
        return self.route.arranged([bucket.owners for bucket in buckets], lengths, dtypes, device, not self.keeps)

    def start(self, number: int, room: Room) -> None:
        if self._is_over:
            self._reset()
        self._started[number] = room
        self._send()

    def started_all(self) -> None:
        if self._is_over:
            self._reset()
        self._send()
        self._pipeline.drain()
        self._is_over = True

    def finish(self, number: int) -> Room:
        results = self._pipeline.results(number)
        self._pipeline.forget(number)
        return self._averages(number, results)

    def _averages(self, number: int, results: Sequence[Tensor]) -> Room:
        """Returns the room with the averages of a round, given the results of its errand."""
        return self._rooms.pop(number)

    def _steps(self, errand: Errand) -> list[Step]:
        """Returns the steps of a round."""
        return self.route.round_trip(errand)

    def _reset(self) -> None:
        self._pipeline = Pipeline()
        self._started: dict[int, Room] = {}
        self._rooms: dict[int, Room] = {}
        self._is_over = False

    def _send(self) -> None:
        """Sends all rounds that are complete, in order."""
        while len(self._pipeline) < self.rounds:
            number = len(self._pipeline)
            buckets, room = self._of_round.get(number, ()), self._started.pop(number, None)
            if buckets and room is None:
                return
            owners = [bucket.owners for bucket in buckets]
            errand = Errand(owners, f"round {number} of gradients", "gradients", self.exchanges[number])
            if room is None:
                self._pipeline.send(self._steps(errand), (), self.groups.idle_device)
                continue
            errand = replace(errand, room=room, change=self._division(room, owners))
            self._pipeline.send(self._steps(errand), room.memory, room.memory[0].device)
            if not self.keeps:
                self._rooms[number] = room

    def _division(self, room: Room, owners: Sequence[OwnerSet]) -> Callable[[Sequence[Tensor]], None]:
        """Divides what could overflow when it is added up. Returns what divides sums of the rest."""
        is_half = [dtype == torch.float16 for dtype in room.dtypes]
        if any(is_half):
            for stretches, those, half in zip(room.stretches, owners, is_half, strict=True):
                if half:
                    torch._foreach_div_(list(stretches), float(len(those)))

        def divide(sums: Sequence[Tensor]) -> None:
            left = [number for number, half in enumerate(is_half) if not half]
            if left:
                torch._foreach_div_([sums[number] for number in left], [float(len(owners[number])) for number in left])

        return divide
