"""Checksums of the bits of tensors: exact, independent of strides and devices, and of many tensors at once.

The tensors are copied one after the other into a table of 64-bit words, each from the beginning of a row. A checksum is
the sum of a tensor's words, each times a weight of its row and one of its column. It is a sum of integers, so it does
not depend on the order of summation. A few kernels compute those of all tensors: on an accelerator their number costs
more than the copies. On the CPU a long tensor that is a table as it lies is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_BYTES = 2**25
"""Size up to which tensors share a table, which is memory that a step needs besides. Longer ones have their own."""

CACHED_BYTES = 2**20
"""The same on the CPU, which computes a table that fits its cache in three quarters of the time."""

_WORDS = 256
"""Words in a row of the table."""

_ROW_BYTES = 8 * _WORDS

_LONG = 64
"""Rows of a tensor from which on a table of its own costs less than a copy."""

_MOST_LAYOUTS = 256
"""More than a model's shares have tables: all tables of a share come again, so dropping one costs as much as all."""

_layouts: dict[tuple[torch.device, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
"""The weight of each row and the number of its tensor, by device and the tensors' numbers of rows."""

_column_weights: dict[torch.device, Tensor] = {}


@dataclass(frozen=True)
class _Table:
    """Tensors that share a table."""

    places: list[int]
    tensors: list[Tensor]
    rows: list[int]

    def checksums(self) -> Tensor:
        """Returns the checksums, on the device of the tensors."""
        device, words = self.tensors[0].device, self._words()
        sums = words >> 32
        sums ^= words  # else a change of the highest bits of an even number of words would cancel out
        of_rows, owners = _layout(device, tuple(self.rows))
        sums = sums.view(-1, _WORDS).mul_(_weights_of_columns(device)).sum(1).mul_(of_rows)
        return sums.new_zeros(len(self.rows)).index_add_(0, owners, sums)

    def _words(self) -> Tensor:
        """Returns the table, which may be the memory of its only tensor."""
        first = self.tensors[0]
        if _is_table(first):
            return first.detach().view(-1).view(torch.int64)
        words = torch.zeros(sum(self.rows) * _WORDS, dtype=torch.int64, device=first.device)
        elements, targets, row = words.view(first.dtype), list[Tensor](), 0
        for tensor, rows in zip(self.tensors, self.rows, strict=True):
            start = row * _ROW_BYTES // first.itemsize
            targets.append(elements.as_strided(tensor.shape, _contiguous(tensor.shape), start))
            row += rows
        torch._foreach_copy_(targets, self.tensors)
        return words


def checksums(tensors: Sequence[Tensor], late: bool) -> Callable[[], list[int]]:
    """Starts to compute a 64-bit checksum of each tensor, of the bits of its elements in their order.

    Args:
        tensors: Strided tensors on any devices.
        late: Whether the checksums are wanted later, so that the host need not wait for the devices now.

    Returns:
        A function that returns them.
    """
    tables = list(_tables(tensors))
    get = fetched([table.checksums() for table in tables], late)
    order = [place for table in tables for place in table.places]

    def ordered() -> list[int]:  # does not keep the tensors, which may be freed before they are compared
        result = [0] * len(order)
        for place, value in zip(order, get(), strict=True):
            result[place] = value
        return result

    return ordered


def _tables(tensors: Sequence[Tensor]) -> Iterator[_Table]:
    """Yields tables with all tensors. Those of one table have the same dtype and device."""
    opened: dict[tuple[torch.device, torch.dtype], _Table] = {}
    for place, tensor in enumerate(tensors):
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.detach().resolve_conj().resolve_neg())
        rows = max(-(-tensor.nbytes // _ROW_BYTES), 1)
        if _is_table(tensor):
            yield _Table([place], [tensor], [rows])
            continue
        key = tensor.device, tensor.dtype
        largest = CACHED_BYTES if tensor.device.type == "cpu" else LARGEST_BYTES
        if key in opened and (sum(opened[key].rows) + rows) * _ROW_BYTES > largest:
            yield opened.pop(key)
        table = opened.setdefault(key, _Table([], [], []))
        table.places.append(place)
        table.tensors.append(tensor)
        table.rows.append(rows)
    yield from opened.values()


def _is_table(tensor: Tensor) -> bool:
    """Whether a tensor is long, on the CPU, and lies there as it would in a table of its own."""
    nbytes, start = tensor.nbytes, int(tensor.storage_offset()) * tensor.itemsize
    is_long = tensor.device.type == "cpu" and nbytes >= _LONG * _ROW_BYTES and nbytes % _ROW_BYTES == 0
    return is_long and start % 8 == 0 and tensor.is_contiguous()


def _contiguous(shape: Sequence[int]) -> list[int]:
    """Returns the strides of a contiguous tensor."""
    strides, step = [1] * len(shape), 1
    for dim in range(len(shape) - 1, -1, -1):
        strides[dim] = step
        step *= shape[dim]
    return strides


def _layout(device: torch.device, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Returns the weight of each row of a table, and the number of the tensor that it belongs to."""
    if (device, rows) not in _layouts:
        if len(_layouts) >= _MOST_LAYOUTS:
            _layouts.clear()
        counts = torch.tensor(rows)
        owners = torch.arange(len(rows)).repeat_interleave(counts)
        within = torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]
        _layouts[device, rows] = _sent(_weights(within, 0x3F58476D1CE4E5B9), device), _sent(owners, device)
    return _layouts[device, rows]


def _weights_of_columns(device: torch.device) -> Tensor:
    if device not in _column_weights:
        _column_weights[device] = _sent(_weights(torch.arange(_WORDS), 0x14D049BB133111EB), device)
    return _column_weights[device]


def _weights(at: Tensor, start: int) -> Tensor:
    """Returns numbers modulo 2^64 that are odd, so that no change of a single word is lost, and not linear."""
    mixed = (at + start) * 0x1E3779B97F4A7C15
    return (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B9 | 1


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Returns the values on a device. The host does not wait for the copy."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def fetched(vectors: Sequence[Tensor], late: bool) -> Callable[[], list[int]]:
    """Starts to copy integers to the host.

    Args:
        vectors: Integers on any devices, in vectors or scalars.
        late: Whether they are wanted later, so that the host need not wait for the devices now.

    Returns:
        A function that returns all of them in their order.
    """
    devices = list(dict.fromkeys(vector.device for vector in vectors))
    places = {device: [at for at, vector in enumerate(vectors) if vector.device == device] for device in devices}
    copies = [_copied(torch.cat([vectors[at].reshape(-1) for at in places[device]]), late) for device in devices]

    def get() -> list[int]:
        parts: list[list[int]] = [[] for _ in vectors]
        for device, copy in zip(devices, copies, strict=True):
            values = iter(copy())
            for at in places[device]:
                parts[at] = [next(values) for _ in range(vectors[at].numel())]
        return [value for part in parts for value in part]

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
