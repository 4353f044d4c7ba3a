"""Buffers to which forward writes: each emulated worker has its own, and the full model has them merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sdp_compile.emulation.station import Station
from sdp_compile.ir.program import Capture
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.moves import same_owners
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.state.spectral import spectral_names, with_spectral_norms
from sdp_compile.runtime.state.statistics import running_statistics, written_state


class OwnBuffers:
    """The buffers of each worker to which forward writes, such as running statistics.

    Args:
        capture: The original model.

    Attributes:
        of: For each worker, its own buffers by name.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture, self._statistics = capture, running_statistics(capture)
        self._names = [name for name in sorted(written_state(capture)) if capture.state[name].kind == "buffer"]
        self._holdings: dict[int, Holdings] = {}
        self._plan: Plan | None = None
        self.of: dict[int, dict[str, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    @torch.no_grad()
    def follow(self, plan: Plan, stations: Iterable[Station], full: Mapping[str, Tensor]) -> None:
        """Takes over a plan. Buffers that are merged, or get other owners, are cut from the full ones.

        Args:
            plan: The plan.
            stations: The subnetworks of all workers.
            full: The full tensors by canonical name, already merged.
        """
        before, stay = self.of, set[str]()
        if self._plan is not None:
            stay = {name for name in self._names if same_owners(self._plan, plan, name)}
            stay -= {*self._merged_statistics(), *spectral_names(self._capture.skeleton, self._plan)}
        self._plan, self._holdings, self.of = plan, {}, {}
        for station in stations:
            regions = {name: region for name in self._names if (region := station.holdings.region_of(name)) is not None}
            for worker in station.workers:
                self._holdings[worker] = station.holdings
                self.of[worker] = {
                    name: before[worker][name] if name in stay else region.copy(full[name].detach())
                    for name, region in regions.items()
                }

    def _merged_statistics(self) -> list[str]:
        found = self._statistics
        return [*found.means, *(name for name, _ in found.variances), *found.counters]

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replaces each buffer by what a function makes of it, as `torch.nn.Module.to` does."""
        self.of = {worker: {name: function(one) for name, one in own.items()} for worker, own in self.of.items()}

    @torch.no_grad()
    def merge(self, full: Mapping[str, Tensor]) -> None:
        """Writes the buffers into those of the full model: merged if they are statistics, else the first owner's.

        Args:
            full: The full tensors by canonical name.
        """
        statistics, own = self._statistics, self.of
        means = set(statistics.means)
        means_of = {name: mean for name, mean in statistics.variances if mean is not None}
        counters = set(statistics.counters)
        for name in sorted(self._names, key=lambda name: name not in means):  # variances need the merged means
            values = {worker: tensors[name] for worker, tensors in own.items() if name in tensors}
            if name in counters:
                self._write(full[name], name, values, lambda parts: torch.stack(parts).amax(0))
            elif name in means or name in dict(statistics.variances):
                wide = {worker: value.double() for worker, value in values.items()}
                if name in means_of:
                    wide = {worker: self._spread(worker, value, means_of[name], full) for worker, value in wide.items()}
                self._write(full[name], name, wide, lambda parts: torch.stack(parts).sum(0) / len(parts))
            else:
                self._write(full[name], name, values, lambda parts: parts[0])
        assert self._plan is not None
        names = spectral_names(self._capture.skeleton, self._plan)
        for name, value in with_spectral_norms(self._capture.skeleton, self._plan, full).items() if names else ():
            if name in names and value is not full[name]:
                full[name].copy_(value)

    def _spread(self, worker: int, variance: Tensor, mean: str, full: Mapping[str, Tensor]) -> Tensor:
        """Returns a worker's variance around the merged mean."""
        region = self._holdings[worker].region_of(mean)
        assert region is not None
        return variance + (self.of[worker][mean].double() - region.read(full[mean]).double()) ** 2

    def _write(
        self, full: Tensor, name: str, values: Mapping[int, Tensor], combined: Callable[[list[Tensor]], Tensor]
    ) -> None:
        """Writes each piece of a buffer, combined from those of its owners."""
        assert self._plan is not None
        for piece in self._plan.pieces(name):
            if piece.numel and piece.owners:
                parts = [self._holdings[owner].region(piece).read(values[owner]) for owner in piece.owners]
                Region(piece.index).write(full, combined(parts))
