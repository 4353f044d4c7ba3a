"""Checksums of the bits of tensors: exact, and independent of strides and devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

_weights: dict[torch.device, Tensor] = {}


def checksum(tensor: Tensor) -> Tensor:
    """Returns a 64-bit checksum of the elements of a tensor in their order, as a scalar tensor on its device.

    It is a sum of integers, so it does not depend on the order of summation: of the sums over each row and each column,
    every one with a weight of its own. It reads strided tensors where they lie, because copies cost most of the time.
    """
    table = tensor.detach()
    if table.is_complex():
        table = table.resolve_conj().resolve_neg()
    table = table.flatten(1) if table.dim() > 1 else table.reshape(1, -1)
    width = _width(table)
    while width < 8 and len(table) % 2 == 0:  # sums of short words are slow
        table = table.reshape(len(table) // 2, -1)
        width = _width(table)
    steps = (table.stride(0), table.storage_offset())
    if table.stride(1) != 1 or any(step * table.element_size() % width for step in steps):
        table = table.clone(memory_format=torch.contiguous_format)
    words = table.view(_WORDS[width])
    one_row = len(words) == 1
    sums = words[0] if one_row else torch.cat([words.sum(dim, dtype=torch.int64) for dim in (0, 1)])
    return (sums * _weights_on(sums.device, len(sums))).sum()


def _width(table: Tensor) -> int:
    """Returns the size in bytes of the longest words that make up a row."""
    row = table.shape[1] * table.element_size()
    return next(width for width in _WORDS if row % width == 0)


def fetched(scalars: Sequence[Tensor], late: bool) -> Callable[[], list[int]]:
    """Starts to copy scalars to the host.

    Args:
        scalars: Integers on any devices.
        late: Whether they are wanted later, so that the host need not wait for the devices now.

    Returns:
        A function that returns them.
    """
    devices = list(dict.fromkeys(scalar.device for scalar in scalars))
    places = {device: [at for at, scalar in enumerate(scalars) if scalar.device == device] for device in devices}
    copies = [_copied(torch.stack([scalars[at] for at in places[device]]), late) for device in devices]

    def get() -> list[int]:
        result = [0] * len(scalars)
        for device, copy in zip(devices, copies, strict=True):
            for at, value in zip(places[device], copy(), strict=True):
                result[at] = value
        return result

    return get


def _copied(values: Tensor, late: bool) -> Callable[[], list[int]]:
    if values.device.type == "cpu" or not late:
        numbers: list[int] = values.tolist()
        return lambda: numbers
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.accelerator.current_stream(values.device).record_event()

    def get() -> list[int]:
        event.synchronize()
        result: list[int] = host.tolist()
        return result

    return get


def _weights_on(device: torch.device, count: int) -> Tensor:
    if device not in _weights or len(_weights[device]) < count:
        at = torch.arange(max(1024, 2 * count), device=device)
        # Modulo 2^64, and not linear: linear weights would miss some exchanges of four elements.
        _weights[device] = (at * 0x1E3779B97F4A7C15 + 0x3F58476D1CE4E5B9) * (at + 0x14D049BB133111EB)
    return _weights[device][:count]
