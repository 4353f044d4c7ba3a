"""What gradients have in common of which each worker holds a part: torch's functions give the full model's results."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.errors import DistributedError
from sdp_compile.runtime.full_results.norms import Engine, Share, check_order, norm_of_norms, norms_of
from sdp_compile.runtime.full_results.overflow import UNSCALE, defer
from sdp_compile.runtime.full_results.partial_norm import NORMS, PartialNorm, norm_request
from sdp_compile.runtime.full_results.statistic import STATISTICS, SliceStatistic, along, apart


class PartialGradient(Tensor):
    """A worker's part of a gradient.

    `torch.nn.utils.clip_grad_norm_`, `torch.nn.utils.get_total_norm` and `torch.amp.GradScaler` see the full model's
    gradient. Everything else sees this worker's values. Statistics of them, such as a mean along a dimension that is
    cut, remember that they are a slice's.

    Attributes:
        parameter_name: The parameter.
        engine_ref: What averages the gradient. Weak: the engine knows the parameters, whose gradients Python's garbage
            collector cannot see.
    """

    parameter_name: str
    engine_ref: weakref.ref[Engine]

    @property
    def engine(self) -> Engine:
        """What averages the gradient."""
        engine = self.engine_ref()
        if engine is None:
            raise DistributedError(
                f"The gradient of {self.parameter_name!r} belongs to a compiled model that was deleted, so its norm "
                "over all workers is not known. Keep the model for as long as its gradients are used."
            )
        return engine

    @abstractmethod
    def held(self) -> list[Tensor]:
        """Returns the plain tensors in which this worker holds its part."""

    @abstractmethod
    def counted(self) -> list[Tensor]:
        """Returns the elements that this worker counts, so that together the workers count every element once."""

    def cut_dims(self) -> set[int]:
        """Returns the dimensions of which this worker holds a part."""
        full = self.engine.holdings.plan.state[self.parameter_name].shape
        return {dim for dim, (own, all_) in enumerate(zip(self.shape, full, strict=True)) if own != all_}

    def following(self, result: Tensor) -> Tensor:
        """Returns another view or a conversion of this gradient, given its values, as such a gradient."""
        return result

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(types) > 1 and not torch.compiler.is_dynamo_compiling():
            what = _statistic(types, (args, kwargs))
            if what:
                return apart(func, args, kwargs or {}, what)
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _norm(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    request = norm_request(func, args, kwargs)
    gradient = None if request is None else request[0]
    differentiated = isinstance(gradient, Tensor) and gradient.requires_grad and torch.is_grad_enabled()
    if request is None:
        return _along(func, args, kwargs)
    if differentiated or not isinstance(gradient, PartialGradient):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    return _norm_of(*request)


def _along(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Calls a function along dimensions. Along those that are cut the result is one of this worker's slice."""
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    gradient = args[0] if args else kwargs.get("input", kwargs.get("x", kwargs.get("A")))
    if not isinstance(gradient, PartialGradient) or gradient.engine_ref() is None or result is gradient:
        return result
    dims = along(func, args, kwargs, gradient.dim())
    if dims is None or dims.isdisjoint(gradient.cut_dims()):
        return result
    return SliceStatistic.of(result, f"{func.__name__}() of the gradient of {gradient.parameter_name!r}")


def _statistic(types: Sequence[type], arguments: Any) -> str:
    """Returns what statistic of a slice is among the arguments; empty if there is none."""
    if any(issubclass(kind, (SliceStatistic, PartialNorm)) for kind in types):
        for leaf in pytree.tree_leaves(arguments):
            if isinstance(leaf, (SliceStatistic, PartialNorm)) and leaf.what:
                return leaf.what
    return ""


def _foreach_norm(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    gradients, order = args[0], float(args[1] if len(args) > 1 else kwargs.get("ord", 2.0))
    return [
        _norm_of(gradient, order)
        if isinstance(gradient, PartialGradient)
        else torch.linalg.vector_norm(gradient, order, dtype=kwargs.get("dtype"))
        for gradient in gradients
    ]


def _norm_of(gradient: PartialGradient, order: float) -> PartialNorm:
    check_order(order, f"the norm of the gradient of {gradient.parameter_name!r}")
    with torch._C.DisableTorchFunctionSubclass():
        held, counted = gradient.held(), gradient.counted()
        norms = norms_of(held, order)
        same = len(held) == len(counted) and all(a is b for a, b in zip(held, counted, strict=True))
        share = Share(gradient.engine, gradient.parameter_name, norms if same else norms_of(counted, order))
        value = norms[0] if len(norms) == 1 else norm_of_norms(norms, order)
        value = value.to(gradient.device, gradient.dtype.to_real(), copy=True)  # users may change it
    what = f"norm() of the gradient of {gradient.parameter_name!r}" if gradient.cut_dims() else ""
    return PartialNorm.of(value, order, (share,), what=what)


def _unscale(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    gradients, found_inf, inv_scale = args
    held, checked = list[Tensor](), list[tuple[Engine, str]]()
    for gradient in gradients:
        if isinstance(gradient, PartialGradient):
            held += gradient.held()
            checked.append((gradient.engine, gradient.parameter_name))
        else:
            held.append(gradient)
    with torch._C.DisableTorchFunctionSubclass():
        if held:
            func(held, found_inf, inv_scale, **kwargs)
    defer(found_inf, checked)


def _alias(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    return args[0].following(result) if isinstance(args[0], PartialGradient) else result


def _elementwise(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    if torch.compiler.is_dynamo_compiling():  # optimizers compute with such results, which need not be gradients
        return result
    gradients = [arg for arg in args if isinstance(arg, PartialGradient)]
    alike = len({(gradient.parameter_name, gradient.engine_ref) for gradient in gradients}) == 1
    return gradients[0].following(result) if alike and result.shape == gradients[0].shape else result


_ELEMENTWISE = (
    *(Tensor.mul, torch.mul, Tensor.div, torch.div, Tensor.true_divide, Tensor.add, torch.add, Tensor.sub, torch.sub),
    *(Tensor.abs, torch.abs, Tensor.square, torch.square, Tensor.pow, torch.pow, Tensor.__pow__),
    *(Tensor.neg, torch.neg, Tensor.clamp, torch.clamp, Tensor.nan_to_num, torch.nan_to_num),
)
"""Functions with which users put other gradients in the place of these, or scale them within a norm."""

_ALIASES = (
    *(Tensor.detach, torch.detach, Tensor.data.__get__),  # type: ignore[attr-defined]
    *(Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.cpu, Tensor.cuda),
)
"""Functions whose result stands for the same gradient, as in ``torch.norm(p.grad.detach(), 2)``."""

_HANDLERS: dict[Any, Callable[..., Any]] = {
    function: handler
    for functions, handler in (
        (NORMS, torch.compiler.disable(_norm)),
        ((torch._foreach_norm,), torch.compiler.disable(_foreach_norm)),
        ((UNSCALE,), torch.compiler.disable(_unscale)),
        (STATISTICS, torch.compiler.disable(_along)),
        (_ALIASES, torch.compiler.disable(_alias)),
        (_ELEMENTWISE, _elementwise),
    )
    for function in functions
}
