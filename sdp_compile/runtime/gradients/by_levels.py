"""Averages rounds of buckets level by level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from sdp_compile.planning.buckets import Bucket
from sdp_compile.runtime.comm.streams import Step
from sdp_compile.runtime.gradients.reduction import EVERYTHING, Reduction
from sdp_compile.runtime.levels.pipeline import Pipeline
from sdp_compile.runtime.levels.route import Errand, Route


class ByLevels(Reduction):
    """Averages gradients over their owners in a few groups of workers; see `sdp_compile.ownership.levels`.

    Each round of buckets is an errand of a `Pipeline`, sent when all its buckets have been started. A worker sends the
    rounds in which it has no bucket at once after those before them.

    Args:
        route: What this worker does in its groups.
        buckets: The buckets of this worker.
        rounds: The number of rounds.
    """

    def __init__(self, route: Route, buckets: Sequence[Bucket], rounds: int) -> None:
        super().__init__(route.groups)
        self.route, self.buckets, self.rounds = route, tuple(buckets), rounds
        self._expected = Counter(bucket.round for bucket in buckets)
        self._owners = {bucket.number: len(bucket.owners) for bucket in buckets}
        self._is_over = False
        self._reset()

    def length(self, bucket: Bucket, numel: int) -> int:
        return bucket.chunk * len(bucket.owners)

    def start(self, bucket: Bucket, flat: Tensor) -> None:
        if self._is_over:
            self._reset()
        if flat.dtype == torch.float16:  # a sum over many owners could overflow
            flat.div_(len(bucket.owners))
            self._divided.add(bucket.number)
        self._started.setdefault(bucket.round, []).append((bucket, flat))
        self._send()

    def started_all(self) -> None:
        if self._is_over:
            self._reset()
        self._send()
        self._pipeline.drain()
        self._is_over = True

    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        averages = self._averages.get(bucket.round)
        if averages is None:
            averages = self._averages[bucket.round] = self._finished(bucket.round)
        flat = averages.pop(bucket.number)
        if not averages:
            self._pipeline.forget(bucket.round)
        return flat, EVERYTHING

    def _finished(self, number: int) -> dict[int, Tensor]:
        """Waits for a round. Returns the averages of each of its buckets."""
        places = self._places.pop(number)
        averages = dict(zip(places, self._pipeline.results(number), strict=True))
        sums = [bucket for bucket in places if bucket not in self._divided]
        if sums:
            torch._foreach_div_([averages[bucket] for bucket in sums], [float(self._owners[bucket]) for bucket in sums])
        return averages

    def _steps(self, errand: Errand) -> list[Step]:
        """Returns the steps of a round."""
        return self.route.round_trip(errand)

    def _reset(self) -> None:
        self._pipeline = Pipeline()
        self._averages: dict[int, dict[int, Tensor]] = {}
        self._started: dict[int, list[tuple[Bucket, Tensor]]] = {}
        self._places: dict[int, list[int]] = {}
        self._divided: set[int] = set()
        self._is_over = False

    def _send(self) -> None:
        """Sends all rounds that are complete, in order."""
        while len(self._pipeline) < self.rounds:
            number = len(self._pipeline)
            if len(self._started.get(number, ())) < self._expected[number]:
                return
            parts = self._started.pop(number, [])
            self._places[number] = [bucket.number for bucket, _ in parts]
            device = parts[0][1].device if parts else self.groups.idle_device
            errand = Errand([bucket.owners for bucket, _ in parts], f"round {number} of gradients", "gradients")
            self._pipeline.send(self._steps(errand), [flat.to(device) for _, flat in parts], device)
