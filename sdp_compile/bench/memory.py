"""Memory of one worker in training, measured on what it really holds: bytes of distinct storages."""

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
    """Bytes. ``activations`` are what the forward pass keeps for backward, ``peak`` the most that the process grew.

    A storage counts once, in the first of these groups that it belongs to.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    @property
    def state(self) -> int:
        """All that stays between forward and backward but the activations."""
        return self.parameters + self.buffers + self.gradients + self.optimizer

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "state": self.state}


def measure(contestant: Contestant, meter: PeakMeter) -> MemoryUse:
    """Measures in one untimed step. Collective, as a step is."""
    saved: list[torch.UntypedStorage] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(_local(tensor).untyped_storage())
        return tensor

    contestant.optimizer.zero_grad(set_to_none=True)
    meter.restart()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = contestant.work.loss(contestant.call)
    held = _Storages()
    # Between forward and backward FSDP's parameters are, where it keeps them, the gathered ones; those that it has
    # freed have storages without bytes.
    held.add(_tensors(contestant.module))
    activations = _Storages(held.seen).add_storages(saved)
    saved.clear()
    loss.backward()
    contestant.optimizer.step()
    after = _Storages()
    return MemoryUse(
        parameters=after.add(contestant.module.parameters()),
        buffers=after.add(contestant.module.buffers()),
        gradients=after.add(
            gradient for parameter in contestant.module.parameters() for gradient in held_gradients(parameter)
        ),
        optimizer=after.add(_optimizer_tensors(contestant.optimizer)),
        activations=activations,
        peak=meter.peak(),
    )


class PeakMeter:
    """The most memory of the device that this process holds in a step, beyond what it held before the model was built.

    On an accelerator by its allocator; on the CPU by the resident set, which includes what capture and torch.compile
    have loaded for good.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cpu":
            self._before = _resident()
        else:
            torch.accelerator.reset_peak_memory_stats(device)
            self._before = torch.accelerator.memory_allocated(device)

    def restart(self) -> None:
        """Forgets the peak of building and compiling, where the system can: what follows is a step's."""
        gc.collect()
        if self._device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError, AttributeError):  # not Linux, not glibc
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        if self._device.type == "cpu":
            return max(0, _most_resident() - self._before)
        return int(torch.accelerator.max_memory_allocated(self._device) - self._before)


class _Storages:
    """Adds up bytes of storages, each once."""

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
    """Resident bytes of this process now; where the system does not tell, the most so far."""
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
