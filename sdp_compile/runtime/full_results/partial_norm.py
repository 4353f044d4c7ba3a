"""Norms of gradients that remember, until they are combined, what this worker adds to the full model's norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.errors import SDPError
from sdp_compile.runtime.full_results.norms import Share, full_norm
from sdp_compile.runtime.full_results.statistic import apart

NORMS = (torch.linalg.vector_norm, torch.linalg.norm, torch.norm, Tensor.norm)
"""The functions that compute a norm."""

_KEEPING = {
    *(Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
    *(Tensor.detach, torch.detach, Tensor.clone, torch.clone, Tensor.data.__get__),  # type: ignore[attr-defined]
}
_STACKING = {torch.stack, torch.hstack, torch.cat, torch.concat, torch.concatenate}


class PartialNorm(Tensor):
    """This worker's norm of gradients, or a stack of such norms.

    A norm of a stack, as `torch.nn.utils.get_total_norm` computes it, is the norm over the full model's gradients. It
    is collective, and a plain tensor. Everything else sees the values, the norms of what this worker holds, and gives
    statistics of its slice.

    Attributes:
        order: The order of the norms; NaN if they have several.
        shares: What this worker adds to the norm of each gradient.
        others: The norms of plain tensors in the stack.
        what: What the values are, for errors, if a worker holds only a slice of the gradient; empty otherwise.
    """

    order: float
    shares: tuple[Share, ...]
    others: tuple[Tensor, ...]
    what: str

    @staticmethod
    def of(
        value: Tensor, order: float, shares: Sequence[Share], others: Sequence[Tensor] = (), what: str = ""
    ) -> PartialNorm:
        """Makes the new tensor ``value`` a partial norm, and returns it."""
        value.__class__ = PartialNorm
        assert isinstance(value, PartialNorm)
        value.order, value.shares, value.others, value.what = order, tuple(shares), tuple(others), what
        return value

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in NORMS:
            request = norm_request(func, args, kwargs)
            if request is not None and isinstance(request[0], PartialNorm):
                return _outside_graphs(*request)
        what = next((one.what for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, PartialNorm)), "")
        if what and func not in _KEEPING and func not in _STACKING:
            return apart(func, args, kwargs, what)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func in _KEEPING and isinstance(args[0], PartialNorm) and isinstance(result, Tensor):
            return PartialNorm.of(result, args[0].order, args[0].shares, args[0].others, args[0].what)
        if func in _STACKING and isinstance(result, Tensor):
            return _stacked(result, args[0])
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def norm_request(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, float] | None:
    """Returns the tensor and the order of a call of one of `NORMS`; None if it is no norm over all elements."""
    given = dict(zip(("x", "ord", "dim", "keepdim"), args, strict=False))
    aliases = {"A": "x", "input": "x", "self": "x", "p": "ord"}
    given.update({aliases.get(key, key): value for key, value in kwargs.items()})
    tensor, order = given["x"], given.get("ord", 2.0)
    if given.get("dim") is not None or given.get("keepdim") or given.get("out") is not None:
        return None
    if func is torch.linalg.norm and given.get("ord") is not None and tensor.dim() != 1:
        return None  # the norm of a matrix
    if order is None or order == "fro":
        return tensor, 2.0
    return None if isinstance(order, str) else (tensor, float(order))


def _stacked(result: Tensor, entries: Sequence[Tensor]) -> PartialNorm:
    partial = [entry for entry in entries if isinstance(entry, PartialNorm)]
    others = [entry for entry in entries if not isinstance(entry, PartialNorm)]
    orders = {entry.order for entry in partial}
    shares = [share for entry in partial for share in entry.shares]
    nested = [other for entry in partial for other in entry.others]
    order = orders.pop() if len(orders) == 1 else float("nan")
    what = next((entry.what for entry in partial if entry.what), "")
    return PartialNorm.of(result, order, shares, [*nested, *others], what)


@torch.no_grad()
def _combined(norm: PartialNorm, order: float) -> Tensor:
    if norm.order != order:
        raise SDPError(
            f"Norms of order {norm.order:g} of a compiled model's gradients cannot be combined by a norm of order "
            f"{order:g}, because each worker holds only a part of the gradients. Use the same order."
        )
    result = full_norm(norm.shares, norm.others, order)
    return result.to(norm.device, torch.float64 if norm.dtype == torch.float64 else torch.float32)


_outside_graphs = torch.compiler.disable(_combined)
