"""The contracts that need no weights: the mean over the owners, and the sum over all workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.sharding.gradient import local_gradient


class Contract:
    """How gradients make up a unit's gradient; this one takes the mean over the owners.

    The gradient engine averages over the owners what each worker holds, times the worker's `scale`, and multiplies the
    average by a `factor`. Parts that nobody else has are multiplied by `own_factor`.

    What this worker holds in ``.grad`` may count differently than what a backward is about to add to it: after a
    reduction it is the owners' common result. So `begin` is called before a backward accumulates the first gradient.

    Attributes:
        name: What the contract is called in ``sdp.compile(reduction=...)``.
        watches: Whether `begin` must be called.
        is_ready: Whether gradients may be sent before the end of backward.
        ignores: Whether the gradients of the current backward count as zeros.
    """

    name = "mean"
    watches = False
    is_ready = True
    ignores = False

    def begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Called within a backward before it accumulates a first gradient.

        Args:
            parameters: The module's parameters by name.
        """

    def scale(self) -> float:
        """Returns what this worker's gradients are multiplied by before they are averaged."""
        return 1.0

    def agree(self) -> None:
        """Learns from the other workers what `factor` depends on. Collective, once in each reduction.

        Raises:
            SDPError: If the workers' gradients do not make up a gradient; the same on all workers.
        """

    def abandon(self) -> None:
        """Takes the place of `agree` after a backward that failed. Collective."""

    def factor(self, owners: OwnerSet) -> float:
        """Returns what the average over some owners is multiplied by."""
        return 1.0

    def own_factor(self) -> float:
        """Returns what gradients that nobody else has are multiplied by."""
        return 1.0

    def kept(self, owners: OwnerSet) -> float:
        """Returns what earlier reductions' shards are multiplied by before new ones are added."""
        return 1.0

    def end(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Called when a reduction has written all gradients."""

    def dropped(self, names: Iterable[str]) -> None:
        """Called when gradients that no worker has, zeros of a reduction, have become None."""


class Sum(Contract):
    """The sum over all workers, estimated from the owners: N / P times the sum over the P owners of N workers."""

    name = "sum"
    watches = True

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._scale = 1.0

    def begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        rescale(parameters, self._scale)
        self._scale = 1.0

    def scale(self) -> float:
        return self._scale

    def factor(self, owners: OwnerSet) -> float:
        return float(self._workers)

    def own_factor(self) -> float:
        return self._scale * self._workers

    def end(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._scale = 1 / self._workers


@torch.no_grad()
def rescale(parameters: Mapping[str, nn.Parameter], factor: float) -> None:
    """Multiplies what this worker has accumulated and not reduced to shards."""
    if factor == 1:
        return
    gradients = {id(parameter): local_gradient(parameter) for parameter in parameters.values()}
    with torch._C.DisableTorchFunctionSubclass():
        for gradient in gradients.values():
            if isinstance(gradient, Tensor):
                gradient.mul_(factor)
