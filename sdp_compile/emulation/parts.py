"""What an emulation needs besides subnetworks: a copy of the model, each worker's random numbers, checked losses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdp_compile.capture.clone import canonical_names, clone
from sdp_compile.capture.originals import ORIGINALS
from sdp_compile.checkpoint.random_states import random_states, set_random_states
from sdp_compile.errors import SDPError
from sdp_compile.ir.parts import submodule
from sdp_compile.passes import Pass, SyncGradients, Verify


class RandomNumbers:
    """The random number generators of each worker.

    Args:
        workers: The number of workers.
        seed: Worker i's generators are seeded with ``seed + i``.
    """

    def __init__(self, workers: int, seed: int) -> None:
        self._states = [_seeded(seed + worker) for worker in range(workers)]

    @contextmanager
    def of(self, worker: int) -> Iterator[None]:
        """Within this context, random numbers are those of a worker."""
        outside = random_states()
        set_random_states(self._states[worker])
        try:
            yield
        finally:
            self._states[worker] = random_states()
            set_random_states(outside)


def without_communication(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Returns a pipeline without marks of where gradients are averaged, and without the check that they are there."""
    kept = (one for one in passes if not isinstance(one, SyncGradients))
    return tuple(Verify(marks=False) if isinstance(one, Verify) else one for one in kept)


def copy_of(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with values of its own."""
    result = clone(model, _copied)
    del vars(result)[ORIGINALS]
    return result


def places_of(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Returns where the parts of a model hold each tensor, by canonical name: a registry, and the key in it."""
    result = {}
    for name in dict.fromkeys(canonical_names(model).values()):
        path, _, key = name.rpartition(".")
        part = submodule(model, path)
        result[name] = (part._parameters if key in part._parameters else part._buffers, key)
    return result


def checked_weights(
    workers: int, reduction: str, batches: Sequence[Any], tokens: Sequence[float] | None
) -> Sequence[float]:
    """Returns what the gradients of each worker count.

    Args:
        workers: The number of workers.
        reduction: How the gradients of the owners of a unit make up its gradient.
        batches: The batches that a user passed.
        tokens: The numbers of tokens that a user passed.

    Raises:
        SDPError: If there is not one batch for each worker, or ``tokens`` does not go with the reduction.
    """
    for what, values in (("batches", batches), ("tokens", tokens)):
        if values is not None and (not isinstance(values, Sequence) or len(values) != workers):
            found = len(values) if isinstance(values, Sequence) else type(values).__name__
            raise SDPError(f"{what} must be a list with one entry for each of {workers} workers, got {found}.")
    if (tokens is None) == (reduction == "tokens"):
        raise SDPError(
            "tokens= is for reduction='tokens', which needs it: the number of tokens of each worker's batch."
        )
    return [1.0] * workers if tokens is None else [float(count) for count in tokens]


def check_loss_function(loss_fn: Any) -> None:
    """Raises `SDPError` for a loss function that takes outputs and labels."""
    where = getattr(loss_fn, "__module__", "") or ""
    if not callable(loss_fn) or isinstance(loss_fn, nn.Module) or where.startswith("torch.nn"):
        raise SDPError(
            "loss_fn is called as loss_fn(model, batch) and returns the loss. Pass, for example, "
            "lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])."
        )


def checked_loss(loss: Any) -> Tensor:
    """Returns a loss as a scalar; raises `SDPError` if it is none, or no gradient flows from it."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        if isinstance(loss, Tensor) and loss.numel() == 1:
            what += " without a gradient"
        raise SDPError(
            f"loss_fn must return the loss, a scalar that was computed by the model it gets; it gave {what}."
        )
    return loss.reshape(())


def _copied(tensor: Tensor) -> Tensor:
    value = tensor.detach().clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _seeded(seed: int) -> dict[str, Any]:
    """Returns the states of all random number generators after they were seeded."""
    outside = random_states()
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return random_states()
    finally:
        set_random_states(outside)
