"""One random order of samples for all workers, which can be entered anywhere, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
from torch.utils.data import Sampler

from sdp_compile.errors import SDPError
from sdp_compile.structure.layout import Indices

_ROUNDS = 4


class SampleOrder(Sampler[list[int]]):
    """Batches of indices into a data set: a random order in which each epoch has every sample once.

    Each step, the workers take their batches side by side from this order. So a run that goes on with another number of
    workers, or another batch size, loses and repeats no sample::

        restored = sdp.load_checkpoint(folder, model, optimizer)
        order = sdp.SampleOrder(len(data), batch=8, rank=rank, workers=workers, done=restored.samples or 0)
        for batch in DataLoader(data, batch_sampler=order):          # endless
            ...
            step += 1
            sdp.save_checkpoint(folder, model, optimizer, step=step, samples=order.after(step - restored.step))

    It needs no memory for the order, and no time to skip samples.

    Args:
        samples: The number of samples in the data set.
        batch: The number of samples per worker and step.
        rank: This worker.
        workers: The number of workers.
        seed: Decides the order; the same for all workers and for the whole run.
        done: The number of samples that all workers together have trained on, as `Restored.samples` says it.

    Raises:
        SDPError: If one of the numbers cannot be.
    """

    def __init__(self, samples: int, batch: int, rank: int = 0, workers: int = 1, seed: int = 0, done: int = 0) -> None:
        for name, value, least in (("samples", samples, 1), ("batch", batch, 1), ("workers", workers, 1)):
            _check(name, value, least, None)
        _check("rank", rank, 0, workers - 1)
        _check("done", done, 0, None)
        self._samples, self._batch, self._rank, self._workers = samples, batch, rank, workers
        self._seed, self._done = seed, done

    def after(self, steps: int) -> int:
        """Returns the number of samples that all workers have trained on after so many more steps."""
        return self._done + steps * self._batch * self._workers

    def batch(self, step: int) -> Indices:
        """Returns this worker's indices in a step, counted from 0 after ``done``."""
        start = self.after(step) + self._rank * self._batch
        epochs, places = np.divmod(np.arange(start, start + self._batch), self._samples)
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = _shuffled(places[chosen], self._samples, f"{self._seed} {epoch}")
        return result

    def __iter__(self) -> Iterator[list[int]]:
        step = 0
        while True:
            yield self.batch(step).tolist()
            step += 1


def _shuffled(places: Indices, count: int, key: str) -> Indices:
    """Returns where a random permutation of ``range(count)`` takes these places.

    A Feistel network permutes the numbers of an even number of bits, whatever its rounds compute. It is repeated for
    numbers that are too large, which makes a permutation of the smaller ones: "cycle walking".
    """
    half = np.uint64(max(1, (count - 1).bit_length() + 1 >> 1))
    mask = np.uint64((1 << int(half)) - 1)
    digest = sha256(key.encode()).digest()
    keys = np.frombuffer(digest, dtype="<u8")[:_ROUNDS].astype(np.uint64)
    values = places.astype(np.uint64)
    is_outside = np.ones(values.shape, dtype=np.bool_)
    while is_outside.any():
        left, right = values[is_outside] >> half, values[is_outside] & mask
        for one in keys:
            left, right = right, left ^ (_mixed(right + one) & mask)
        values[is_outside] = left << half | right
        is_outside = values >= count
    return values.astype(np.int64)


def _mixed(values: np.typing.NDArray[np.uint64]) -> np.typing.NDArray[np.uint64]:
    """Returns a hash of each number: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _check(name: str, value: object, least: int, most: int | None) -> None:
    if isinstance(value, int) and value >= least and (most is None or value <= most):
        return
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise SDPError(f"{name} of sdp.SampleOrder must be an integer {limits}, got {value!r}.")
