"""The subnetwork of the workers that own the same units, as a compiled module on the full model's own memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sdp_compile.lowering import Lowered
from sdp_compile.planning.holdings import Held
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.runtime.tensors import local_tensors

Scratch = dict[str, Tensor]
"""Memory for slices that are no views of the full tensors, by the name of the slice. Stations take turns."""


class Station:
    """A compiled module that workers with the same units take turns to use.

    Slices that are evenly spaced are views of the full tensors. Others are copied before each use.

    Args:
        lowered: The programs of the first of these workers.
        workers: The workers.
        full: The full tensors by canonical name.

    Attributes:
        module: The compiled module.
        workers: The workers.
    """

    def __init__(self, lowered: Lowered, workers: Sequence[int], full: Mapping[str, Tensor]) -> None:
        self.workers = tuple(workers)
        self.holdings = lowered.holdings
        capture = lowered.analysis.capture
        self._held = [held for held in lowered.holdings.held() if capture.state[held.source].kind != "constant"]
        device = next((tensor.device for tensor in full.values()), torch.device("cpu"))
        tensors = slice_tensors(lowered.holdings, capture, full)
        constants = {name: one.to(device) for name, one in lowered.holdings.constants.items()}
        self.module = SDPModule(lowered, {**tensors, **constants})
        self.find_tensors()

    def find_tensors(self) -> None:
        """Looks up the module's tensors, after it has got others."""
        self._tensors = local_tensors(self.module)

    @torch.no_grad()
    def occupy(self, full: Mapping[str, Tensor], own: Mapping[str, Tensor], scratch: Scratch) -> None:
        """Gives the module the values of the full model, and the buffers of the worker that uses it next.

        Args:
            full: The full tensors by canonical name.
            own: The worker's own buffers by name.
            scratch: Memory for copies.
        """
        for held in self._held:
            tensor = self._tensors[held.name]
            if held.name in own:
                tensor.data = own[held.name]
            else:
                tensor.data = _slice(held, full[held.source].detach(), scratch)
            tensor.grad = None

    def leave(self) -> None:
        """Drops the gradients."""
        for held in self._held:
            self._tensors[held.name].grad = None

    def gradients(self) -> Iterator[tuple[str, Region, Tensor]]:
        """Yields the gradients of the last backward: the full parameter, where the gradient lies in it, and itself."""
        for held in self._held:
            tensor = self._tensors[held.name]
            if isinstance(tensor, nn.Parameter) and tensor.grad is not None:
                yield held.source, held.region, tensor.grad


def _slice(held: Held, full: Tensor, scratch: Scratch) -> Tensor:
    """Returns the values of a slice: a view, or a copy in scratch memory."""
    if held.region.is_view:
        return held.region.read(full)
    numel, known = held.region.numel, scratch.get(held.name)
    if known is None or known.numel() < numel or (known.dtype, known.device) != (full.dtype, full.device):
        known = scratch[held.name] = full.new_empty(numel)
    return held.region.copy(full, known[:numel].view(held.region.shape))
