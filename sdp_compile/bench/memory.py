"""Measures the memory of one worker in training, in bytes of distinct storages."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sdp_compile.bench.contestant import Contestant
from sdp_compile.runtime.sharding.gradient import held_gradients


@dataclass(frozen=True)
class MemoryUse:
    """Memory in bytes. A storage counts once, in the first of these groups that it belongs to.

    Attributes:
        activations: What the forward pass saves for backward.
        peak: The most by which the process grew; see `PeakMeter`.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    @property
    def state(self) -> int:
        """Everything except activations: parameters, buffers, gradients and optimizer state."""
        return self.parameters + self.buffers + self.gradients + self.optimizer

    def to_dict(self) -> dict[str, int]:
        """Returns all fields and ``state`` as a dict, ready for JSON."""
        return {**asdict(self), "state": self.state}


def measure(contestant: Contestant, meter: PeakMeter) -> MemoryUse:
    """Runs one untimed step and measures its memory. Collective."""
    saved: list[torch.UntypedStorage] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(_local(tensor).untyped_storage())
        return tensor

    contestant.optimizer.zero_grad(set_to_none=True)
    meter.restart()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = contestant.work.loss(contestant.call)
    held = _Storages()
    # Between forward and backward, FSDP holds gathered parameters or has freed them, which leaves empty storages.
    held.add(_tensors(contestant.module))
    activations = _Storages(held.seen).add_storages(saved)
    saved.clear()
    loss.backward()
    contestant.optimizer.step()
    return MemoryUse(**held_by(contestant), activations=activations, peak=meter.peak())


def held_by(contestant: Contestant) -> dict[str, int]:
    """Returns the bytes of what a worker holds now by kind: the fields of `MemoryUse` that make up its state."""
    after = _Storages()
    gradients = (gradient for parameter in contestant.module.parameters() for gradient in held_gradients(parameter))
    return {
        "parameters": after.add(contestant.module.parameters()),
        "buffers": after.add(contestant.module.buffers()),
        "gradients": after.add(gradients),
        "optimizer": after.add(_optimizer_tensors(contestant.optimizer)),
    }


class PeakMeter:
    """Measures the peak memory of a step, above what the process held when the meter was made.

    On an accelerator it reads the allocator. On the CPU it reads the resident set, which includes what capture and
    torch.compile have loaded for good.

    Args:
        device: The device of this worker.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cpu":
            self._before = _resident()
        else:
            torch.accelerator.reset_peak_memory_stats(device)
            self._before = torch.accelerator.memory_allocated(device)

    def restart(self) -> None:
        """Resets the peak before a step, if the system can, so that building and compiling do not count."""
        gc.collect()
        if self._device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError, AttributeError):  # not Linux, not glibc
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Returns the peak in bytes."""
        if self._device.type == "cpu":
            return max(0, _most_resident() - self._before)
        return int(torch.accelerator.max_memory_allocated(self._device) - self._before)


class _Storages:
    """Adds up the bytes of storages, counting each once."""

    def __init__(self, seen: Iterable[int] = ()) -> None:
        self.seen = set(seen)

    def add(self, tensors: Iterable[Tensor | None]) -> int:
        return self.add_storages(_local(tensor).untyped_storage() for tensor in tensors if tensor is not None)

    def add_storages(self, storages: Iterable[torch.UntypedStorage]) -> int:
        total = 0
        for storage in storages:
            if storage.nbytes() and storage.data_ptr() not in self.seen:
                self.seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _optimizer_tensors(optimizer: Any) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _resident() -> int:
    """Resident bytes of this process now, or at most so far if the system does not report the current size."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _most_resident()
    return pages * resource.getpagesize()


def _most_resident() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
