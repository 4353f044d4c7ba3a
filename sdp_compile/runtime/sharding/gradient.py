"""The placeholder in a parameter's ``.grad`` while its owners hold the gradient in shards."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.errors import SDPError
from sdp_compile.runtime.full_results.gradient import PartialGradient
from sdp_compile.runtime.sharding.shards import Shard

_aten = torch.ops.aten

_SCALING = {_aten.mul_.Tensor, _aten.mul_.Scalar, _aten.div_.Tensor, _aten.div_.Scalar}
_ELEMENTWISE = {*_SCALING, _aten.clamp_.default, _aten.clamp_min_.default, _aten.clamp_max_.default}
"""Changes that each owner can make to its own shards."""

_FOREACH = {
    _aten._foreach_zero_.default: _aten.zero_.default,
    _aten._foreach_mul_.Tensor: _aten.mul_.Tensor,
    _aten._foreach_mul_.Scalar: _aten.mul_.Scalar,
    _aten._foreach_div_.Tensor: _aten.div_.Tensor,
    _aten._foreach_div_.Scalar: _aten.div_.Scalar,
    _aten._foreach_clamp_min_.Scalar: _aten.clamp_min_.default,
    _aten._foreach_clamp_max_.Scalar: _aten.clamp_max_.default,
}


class ShardedGradient(PartialGradient):
    """A gradient of which this worker holds only its own shards.

    It has the parameter's shape, dtype and device, so that ``.grad is None`` and ``zero_grad()`` keep their meaning,
    but it has no values: reading them raises `SDPError`. It can be scaled and clamped, and torch's functions for
    clipping and loss scaling work.

    Attributes:
        parts: The averaged gradient of each of this worker's shards.
        fresh: What later backward passes have accumulated on top and not averaged yet; None for nothing.
    """

    parts: dict[Shard, Tensor]
    fresh: Tensor | None

    @staticmethod
    def __new__(cls, name: str, like: Tensor, engine: weakref.ref[Any]) -> ShardedGradient:
        self: ShardedGradient = Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device, storage_size=0
        )
        self.parameter_name, self.engine_ref, self.parts, self.fresh = name, engine, {}, None
        return self

    def held(self) -> list[Tensor]:
        return list(self.parts.values())

    def counted(self) -> list[Tensor]:
        return self.held()  # no two workers hold the same element

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"ShardedGradient({self.parameter_name!r}, shape={list(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if func is _aten.add_.Tensor and isinstance(first, ShardedGradient):  # how autograd accumulates
            first.fresh = args[1].clone() if first.fresh is None else first.fresh.add_(args[1])
            return first
        if func is _aten.zero_.default and isinstance(first, ShardedGradient):
            return first._zero()
        if func in _FOREACH:
            for gradient in args[0]:
                _FOREACH[func](gradient, *args[1:])
            return None
        scalars = all(not isinstance(other, Tensor) or other.dim() == 0 for other in args[1:])
        if func in _ELEMENTWISE and scalars and isinstance(first, ShardedGradient):
            return first._changed(func, args[1:], kwargs or {})
        if func is _aten.detach.default and isinstance(first, ShardedGradient):
            return first._converted()
        if func is _aten._to_copy.default and isinstance(first, ShardedGradient):  # the module is converted
            options = {key: value for key, value in (kwargs or {}).items() if key in ("dtype", "device")}
            return first._converted(**options)
        leaves = pytree.tree_leaves((args, kwargs))
        sharded = next(leaf for leaf in leaves if isinstance(leaf, ShardedGradient))
        raise SDPError(
            f"The gradient of {sharded.parameter_name!r} cannot be read or changed here ({func}): the model has a "
            "ShardedOptimizer, so each owner holds only a shard of it. It can be scaled, clamped and clipped. Delete "
            "the ShardedOptimizer to read gradients or to step another optimizer."
        )

    def _zero(self) -> ShardedGradient:
        self.fresh = None
        for part in self.parts.values():
            part.zero_()
        return self

    def _changed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ShardedGradient:
        if self.fresh is not None and func not in _SCALING:
            raise SDPError(
                f"The gradient of {self.parameter_name!r} was accumulated under no_sync() and is not averaged, so it "
                "cannot be clamped. Run the last backward of a step outside no_sync()."
            )
        for tensor in [*self.parts.values(), *([] if self.fresh is None else [self.fresh])]:
            func(tensor, *args, **kwargs)
        return self

    def _converted(self, **options: Any) -> ShardedGradient:
        like = torch.empty((), dtype=self.dtype, device=self.device).to(**options)
        result = ShardedGradient(self.parameter_name, like.expand(self.shape), self.engine_ref)
        result.parts = {shard: part.to(**options) for shard, part in self.parts.items()}
        result.fresh = None if self.fresh is None else self.fresh.to(**options)
        return result


def local_gradient(parameter: Tensor) -> Tensor | None:
    """Returns what this worker has accumulated in ``.grad`` since its last reduction; None if nothing."""
    gradient = parameter.grad
    return gradient.fresh if isinstance(gradient, ShardedGradient) else gradient


def held_gradients(parameter: Tensor) -> list[Tensor]:
    """Returns the tensors in which this worker holds the parameter's gradient: ``.grad``, or its shards of it."""
    gradient = parameter.grad
    if isinstance(gradient, ShardedGradient):
        return list(gradient.parts.values())
    return [] if gradient is None else [gradient]
