"""Values of buffers with one element that Python code asks for, as ``int(self.start)`` or ``if self.count > 2``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree


class Values:
    """What is known at capture of the buffers of a copy of a model, until forward writes to them.

    Attributes:
        asked: The values that Python code asked for, by name. The graph holds for these.

    Args:
        model: The model that holds the values.
        subject: The copy that runs; None to know nothing.
    """

    def __init__(self, model: nn.Module, subject: nn.Module | None) -> None:
        self.asked: dict[str, Any] = {}
        self._known = {} if subject is None else dict(_small_values(model))
        self._buffers: dict[str, tuple[Tensor, int]] = {}
        if subject is not None:
            self.begin(subject)

    def begin(self, subject: nn.Module) -> None:
        """Notes the buffers with which forward begins."""
        named = dict(subject.named_buffers())
        self._buffers = {name: (named[name], _version(named[name])) for name in self._known if name in named}

    def answer(self, func: Any, args: Any) -> Any:
        """Returns what a function of tensors gives if that is known: a number, or a comparison that is; None if not."""
        if func in _CONVERSIONS:
            found = _compared(args[0]) or self._of_buffer(args[0])
            if found is None:
                return None
            name, value = found
            self.asked[name] = self._known[name]
            return _CONVERSIONS[func](value)
        return None

    def note(self, func: Any, args: Any, result: Any) -> None:
        """Notes that a function compared a buffer with a number, or wrote to several tensors at once.

        Those tensors do not count it as a new version where export runs.
        """
        name = getattr(func, "__name__", "")
        if name.startswith("_foreach_") and name.endswith("_"):
            self._forget(pytree.tree_leaves(args[:1]))
        if func in _COMPARISONS and len(args) == 2 and isinstance(result, Tensor):
            found = self._of_buffer(args[0])
            if found is not None and isinstance(args[1], (bool, int, float)):
                value = torch.tensor(found[1], dtype=args[0].dtype, device="cpu")
                known = found[0], bool(_COMPARISONS[func](value, args[1]))
                setattr(result, _COMPARED, (known, _version(result)))

    def _of_buffer(self, tensor: Any) -> tuple[str, Any] | None:
        """Returns the name and the value of a buffer that forward has not written to yet."""
        for name, (buffer, version) in self._buffers.items():
            if buffer is tensor:
                return (name, self._known[name]) if _version(buffer) == version else None
        return None

    def _forget(self, tensors: Iterable[Any]) -> None:
        written = set(map(id, tensors))
        self._buffers = {name: kept for name, kept in self._buffers.items() if id(kept[0]) not in written}


def _compared(tensor: Tensor) -> tuple[str, Any] | None:
    """Returns the buffer and the answer if a tensor is a comparison that is known, and was not written to."""
    known, version = getattr(tensor, _COMPARED, (None, 0))
    return known if known is not None and _version(tensor) == version else None


def _small_values(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the name and the value of each buffer with one element, as far as it has a value."""
    for name, buffer in model.named_buffers():
        if buffer.numel() == 1 and buffer.device.type != "meta" and not isinstance(buffer, FakeTensor):
            yield name, buffer.detach().item()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


_COMPARED = "_sdp_compared"
_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    torch.Tensor.__int__: int,
    torch.Tensor.__float__: float,
    torch.Tensor.__index__: int,
    torch.Tensor.__bool__: bool,
    torch.Tensor.item: lambda value: value,
}
_COMPARISONS: dict[Any, Callable[[Any, Any], Any]] = {
    getattr(torch.Tensor, name): getattr(operator, name)
    for name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
} | {
    getattr(owner, name): getattr(operator, name)
    for owner in (torch, torch.Tensor)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
