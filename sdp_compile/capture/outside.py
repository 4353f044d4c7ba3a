"""Tensors that are neither parameters nor buffers: forward must not write to them, as a run of capture would, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sdp_compile.errors import CaptureError


class OutsideWrite(CaptureError):
    """Forward writes to a tensor outside of the model."""


class OutsideTensors:
    """The tensors outside of a model that forward reads.

    Attributes:
        found: The tensors that are known until now.
    """

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def written(self, func: Any, args: Sequence[Any], kwargs: Any) -> bool:
        """Whether a function of tensors writes to one of them, or to one that shares its memory."""
        if not self.found:
            return False
        name: str = getattr(func, "__name__", "")
        targets: Any = (kwargs or {}).get("out")
        if func == _SET_DATA or writes(func):
            targets = [targets, args[0] if name.startswith("_foreach_") else args[:1]]
        memory = {_memory(leaf) for leaf in pytree.tree_leaves(targets) if isinstance(leaf, torch.Tensor)} - {None}
        return bool(memory) and any(_memory(one) in memory for one in self.found)


def writes(func: Any) -> bool:
    """Whether a function of tensors writes to its first argument."""
    name: str = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")


def _memory(tensor: torch.Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor
        return None


_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
