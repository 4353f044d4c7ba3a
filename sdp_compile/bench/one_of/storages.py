"""The memory of a step on the CPU: bytes of the distinct storages that are alive, at the most."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class LiveStorages(TorchDispatchMode):
    """Context that adds up the storages that are alive after each operator; each counts once.

    It knows the tensors that exist when it is made, and every output of an operator. What an operator needs within
    itself, and what compiled code allocates, is not seen.

    Args:
        device: The type of the device whose storages count.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        gc.collect()
        self._add([found for found in gc.get_objects() if type(found) in (Tensor, torch.nn.Parameter, DTensor)])
        self.peak = self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes that are alive now. Sizes are read again, because FSDP2 resizes its storages."""
        return sum(storage.nbytes() for reference in self._alive.values() if (storage := reference()) is not None)

    def restart(self) -> None:
        """Begins a new peak."""
        self.peak = self.nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._add(pytree.tree_leaves(result))
        self.peak = max(self.peak, self.nbytes)
        return result

    def _add(self, found: list[Any]) -> None:
        for tensor in found:
            local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
            if not isinstance(local, Tensor) or local.device.type != self._device or local.layout != torch.strided:
                continue
            storage = local.untyped_storage()
            key = id(storage)
            if key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key: self._alive.pop(key, None))  # type: ignore[misc]
