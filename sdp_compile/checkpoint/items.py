"""What each worker writes of a model and its optimizer: boxes of full tensors, which together cover each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.model import CompiledModel, Model
from sdp_compile.planning.boxes import Box, boxes, flat_boxes
from sdp_compile.runtime.comm.transfer import Request
from sdp_compile.runtime.optimizer.shard_states import slices_of
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.sharding.shards import Shard

Key = tuple[str, ...]
"""``("model", NAME)`` or ``("optimizer", NAME, STATE)``."""


@dataclass(frozen=True, eq=False)
class Item:
    """A box of a full tensor that this worker writes.

    Attributes:
        key: The tensor.
        shape: Its full shape.
        dtype: Its dtype.
        box: The part.
        read: Returns the values, in the shape of the box.
    """

    key: Key
    shape: tuple[int, ...]
    dtype: torch.dtype
    box: Box
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return self.box.numel * self.dtype.itemsize


def model_items(model: Model, tensors: Mapping[str, Tensor], every_owner: bool) -> Iterator[Item]:
    """Yields what this worker writes of a model.

    Args:
        model: The model.
        tensors: This worker's tensors by name, with merged statistics.
        every_owner: Whether all owners of an element write it, instead of one.
    """
    for name, shape in model.shapes.items():
        yield from _cut(model, name, ("model", name), shape, tensors.get(name), every_owner)


def optimizer_items(
    model: Model,
    optimizer: Optimizer,
    states: Mapping[str, Mapping[str, torch.dtype]],
    every_owner: bool,
) -> Iterator[Item]:
    """Yields what this worker writes of an optimizer's per-element states. Collective with a sharded one, if so asked.

    A sharded optimizer's states have one holder each. All owners write them after they have exchanged them once.

    Args:
        model: The model.
        optimizer: An optimizer of its parameters.
        states: The dtype of each per-element state by parameter and name, the same on all workers.
        every_owner: Whether all owners of an element write it, instead of one.
    """
    wanted = [(("optimizer", name, key), dtype) for name, dtypes in states.items() for key, dtype in dtypes.items()]
    if isinstance(optimizer, ShardedOptimizer) and not every_owner:
        for at, dtype in wanted:
            yield from _sharded(model, optimizer, at, dtype)
        return
    slices = state_slices(model, optimizer, states)
    for at, _ in wanted:
        _, name, key = at
        if (one := f"{name}:{key}") in slices:
            yield from _cut(model, name, at, model.shapes[name], slices[one], every_owner)


def state_slices(
    model: Model, optimizer: Optimizer, states: Mapping[str, Mapping[str, torch.dtype]]
) -> dict[str, Tensor]:
    """Returns this worker's slices of per-element states, zeros for those that do not exist yet.

    Collective for a sharded optimizer.

    Args:
        model: The model.
        optimizer: An optimizer of its parameters.
        states: The dtype of each per-element state by parameter and name, the same on all workers.

    Returns:
        The slices under the keys ``NAME:STATE``.
    """
    requests = [Request(f"{name}:{key}", name, dtype) for name, keys in states.items() for key, dtype in keys.items()]
    if isinstance(optimizer, ShardedOptimizer) and isinstance(model, CompiledModel):
        return slices_of(optimizer, model.module, requests)
    held, result = {name: parameter for parameter, name in model.parameters.items()}, {}
    for request in requests:
        if request.name in held:
            parameter = held[request.name]
            value = optimizer.state.get(parameter, {}).get(request.key[len(request.name) + 1 :])
            result[request.key] = torch.zeros_like(parameter, dtype=request.dtype) if value is None else value
    return result


def _cut(
    model: Model, name: str, key: Key, shape: tuple[int, ...], tensor: Tensor | None, every_owner: bool
) -> Iterator[Item]:
    """Yields a worker's pieces of a tensor."""
    for share in model.shares(name):
        if share.writer != model.rank and not every_owner:
            continue
        dtype = torch.float32 if tensor is None else tensor.dtype
        for box, local in boxes(share.index, share.index if share.local is None else share.local):
            values = None if share.local is None else tensor
            yield Item(key, shape, dtype, box, _Reader(values, local, dtype))


def _sharded(model: Model, optimizer: ShardedOptimizer, key: Key, dtype: torch.dtype) -> Iterator[Item]:
    """Yields this worker's shards of a state: each element has one worker that steps it."""
    _, name, state = key
    shape = model.shapes[name]
    for shard in optimizer.layout.shards.get(name, ()):
        value = optimizer.state.get(shard.parameter, {}).get(state)
        if not isinstance(value, Tensor):
            value = torch.zeros(shard.parameter.shape, dtype=dtype)
        if shard.region is None:  # stepped by all owners
            yield from _cut(model, name, key, shape, value, False)
        else:
            yield from _flat(model, shard, key, shape, value)


def _flat(model: Model, shard: Shard, key: Key, shape: tuple[int, ...], value: Tensor) -> Iterator[Item]:
    whole = model.region_of(shard.name)
    assert shard.region is not None and whole is not None
    index = [full[local] for full, local in zip(whole.index, shard.region.index, strict=True)]
    start = 0
    for part in flat_boxes(shard.region.shape, shard.start, shard.stop):
        values = value.reshape(-1)[start : start + part.numel].reshape(part.sizes)
        start += part.numel
        chosen = [full[one] for full, one in zip(index, part.slices, strict=True)]
        for box, local in boxes(chosen, [np.arange(size) for size in part.sizes]):
            yield Item(key, shape, value.dtype, box, _Reader(values, local, value.dtype))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads a box of a worker's tensor; without a tensor, zeros."""

    tensor: Tensor | None
    box: Box
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        if self.tensor is None:
            return torch.zeros(self.box.sizes, dtype=self.dtype)
        return self.tensor.detach()[self.box.slices]
