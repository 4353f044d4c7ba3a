"""Copies many regions of tensors into a flat buffer, or back, by a few calls: a call costs more than most copies."""

from __future__ import annotations

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

    def add(self, region: Region, tensor: Tensor, chunk: Tensor) -> None:
        """Adds a region.

        Args:
            region: The region.
            tensor: The tensor that it is a region of.
            chunk: Its place in the buffer, a vector of as many elements.
        """
        run = region.run(tensor)
        if run is not None:
            chunks, views = self._runs
            chunks.append(chunk)
            views.append(run)
        elif region.is_view:
            chunks, views = self._strided
            chunks.append(chunk.view(region.shape))
            views.append(region.read(tensor))
        else:
            self._scattered.append((region, tensor, chunk))

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

    @torch.no_grad()
    def unpack(self) -> None:
        """Copies what is in the places into the regions."""
        for chunks, views in (self._runs, self._strided):
            if chunks:
                torch._foreach_copy_(views, chunks)
        for region, tensor, chunk in self._scattered:
            region.write(tensor, chunk)
