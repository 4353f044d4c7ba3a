"""Copies many regions of tensors into a flat buffer, or back, by a few calls: a call costs more than most copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdp_compile.planning.regions import Region


class Pairs:
    """Regions of tensors, each with its place in a flat buffer."""

    def __init__(self) -> None:
        # Accelerators copy all runs at once, and regions with strides one after the other.
        self._runs: tuple[list[Tensor], list[Tensor]] = [], []
        self._strided: tuple[list[Tensor], list[Tensor]] = [], []
        self._scattered: list[tuple[Region, Tensor, Tensor]] = []
        self._torn: list[tuple[Region, Tensor, Sequence[Tensor]]] = []

    def add(self, region: Region, tensor: Tensor, *places: Tensor) -> None:
        """Adds a region.

        Args:
            region: The region.
            tensor: The tensor that it is a region of.
            places: Its place in the buffer, a vector of as many elements; or several with as many together.
        """
        if not places:  # a region without elements
            return
        run = region.run(tensor)
        chunks, views = self._runs
        if run is not None:
            chunks += places
            views += [run] if len(places) == 1 else run.split_with_sizes([len(place) for place in places])
        elif len(places) != 1:
            self._torn.append((region, tensor, places))
        elif region.is_view:
            chunks, views = self._strided
            chunks.append(places[0].view(region.shape))
            views.append(region.read(tensor))
        else:
            self._scattered.append((region, tensor, *places))

    @torch.no_grad()
    def pack(self) -> None:
        """Copies the regions to their places."""
        for chunks, views in (self._runs, self._strided):
            if chunks:
                torch._foreach_copy_(chunks, views)
        for region, tensor, chunk in self._scattered:
            out = chunk.view(region.shape)
            if tensor.dtype == chunk.dtype:
                region.copy(tensor, out)
            else:
                out.copy_(region.read(tensor))
        for region, tensor, places in self._torn:
            values = region.copy(tensor).reshape(-1).split_with_sizes([len(place) for place in places])
            torch._foreach_copy_(list(places), list(values))

    @torch.no_grad()
    def unpack(self) -> None:
        """Copies what is in the places into the regions."""
        for chunks, views in (self._runs, self._strided):
            if chunks:
                torch._foreach_copy_(views, chunks)
        for region, tensor, chunk in self._scattered:
            region.write(tensor, chunk)
        for region, tensor, places in self._torn:
            region.write(tensor, torch.cat(list(places)))
