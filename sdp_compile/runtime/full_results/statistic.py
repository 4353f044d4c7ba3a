"""Numbers of a worker's slice of a gradient, such as its mean, which differ from those of the full model's gradient.

They can be printed and logged. A gradient that is changed by them would not be the full model's: workers with equal
slices would agree, so that comparing owners does not find it. So that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.errors import SDPError

_BY_DIM = {
    **dict.fromkeys(("mean", "sum", "std", "var", "amax", "amin", "max", "min", "median", "prod", "logsumexp"), 1),
    **dict.fromkeys(("nanmean", "nansum", "nanmedian", "argmax", "argmin", "softmax", "cumsum", "sort"), 1),
    **dict.fromkeys(("topk", "kthvalue", "quantile", "norm", "renorm"), 2),
}
"""Functions that compute along dimensions, and where these stand among the arguments."""

_LAST = ("topk", "kthvalue", "sort")
"""Those that take the last dimension by default, and not all."""

STATISTICS = tuple(
    getattr(place, name) for name in _BY_DIM for place in (Tensor, torch) if name != "norm" and hasattr(place, name)
)
"""The functions but the norms, which are the full model's where they are over all elements."""


class SliceStatistic(Tensor):
    """A statistic of a worker's slice, or what was computed from it.

    Attributes:
        what: What it is, for errors.
    """

    what: str

    @staticmethod
    def of(result: Any, what: str) -> Any:
        """Makes plain floating-point and boolean tensors in a result statistics, and returns it."""
        for leaf in pytree.tree_leaves(result):
            if type(leaf) is Tensor and (leaf.is_floating_point() or leaf.dtype == torch.bool):
                leaf.__class__ = SliceStatistic
                assert isinstance(leaf, SliceStatistic)
                leaf.what = what
        return result

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        what = next(leaf.what for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, SliceStatistic))
        return apart(func, args, kwargs or {}, what)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def apart(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], what: str) -> Any:
    """Calls a function that takes a statistic; raises `SDPError` if it changes a gradient."""
    target = args[0] if args else None
    target = target[0] if isinstance(target, (list, tuple)) and target else target
    name = getattr(func, "__name__", "")
    writes = name == "__set__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    if writes and hasattr(target, "counted"):  # a gradient
        refuse(what)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    return result if writes else SliceStatistic.of(result, what)


def along(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], dims: int) -> set[int] | None:
    """Returns the dimensions along which a function computes; None if it computes element by element."""
    name = "norm" if "norm" in func.__name__ else func.__name__
    at = _BY_DIM[name]
    given = kwargs.get("dim", args[at] if len(args) > at else None)
    if isinstance(given, Tensor) or "other" in kwargs:
        return None
    if given is None or isinstance(given, bool):
        return {dims - 1} if name in _LAST else set(range(dims))
    return {dim % dims for dim in ((given,) if isinstance(given, int) else given)} if dims else set()


def refuse(what: str) -> NoReturn:
    """Raises the error for a gradient that is changed by a statistic of a slice."""
    raise SDPError(
        f"A gradient would be changed by the {what}, of which this worker holds a slice: on the full model the number "
        "is another one. Clip by the norm of all gradients, sdp.clip_grad_norm_() or that of torch.nn.utils, which is "
        "the full model's, or change gradients element by element."
    )
