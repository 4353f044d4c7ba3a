"""Complex numbers and Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.operators.at_zero import both_zero, keeps_zero
from sdp_compile.structure.operators.context import Context, Value, dim_indices
from sdp_compile.structure.operators.elementwise import aligned_zero, broadcast
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


def _same(view: Any, dim: int) -> int:
    return dim


@rule(aten.real.default, aten.imag.default, at_zero=keeps_zero)
@rule(aten.resolve_conj.default, aten.resolve_neg.default, at_zero=keeps_zero, view=_same)
@rule(aten.conj.default, aten._conj.default, at_zero=keeps_zero, view=_same)
def part(ctx: Context, self: Value, **_: Any) -> Value:
    return self


@rule(aten.view_as_real.default, aten.view_as_real_copy.default, at_zero=keeps_zero)
def view_as_real(ctx: Context, self: Value, **_: Any) -> Value:
    pair = axes.fresh(2, ctx.reason("it holds real and imaginary parts"))
    return Value((*self.dims, pair), (*self.zero, False), self.storage)


@rule(aten.view_as_complex.default, aten.view_as_complex_copy.default, at_zero=keeps_zero)
def view_as_complex(ctx: Context, self: Value, **_: Any) -> Value:
    ctx.freeze(self.dims[-1], text="it holds real and imaginary parts")
    return Value(self.dims[:-1], self.zero[:-1], self.storage)


@rule(aten.complex.default, at_zero=both_zero)
@rule(aten.polar.default, at_zero=keeps_zero)
def composed(ctx: Context, **parts: Any) -> Value:
    """A complex number is 0 where both parts are; in polar form, where the modulus is."""
    first, second = parts.values()
    dims = broadcast(ctx, [first, second])
    needed = [first] if ctx.operator == "polar" else [first, second]
    return Value(dims, tuple(all(aligned_zero(v, p) for v in needed) for p in range(-len(dims), 0)))


@rule(aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default, at_zero=keeps_zero)
@rule(aten.fft_hfft.default, aten.fft_ihfft.default, at_zero=keeps_zero)
def transform(ctx: Context, self: Value, dim: int = -1, **_: Any) -> Value:
    return ctx.within(self, [dim])


@rule(
    aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default, at_zero=keeps_zero
)
@rule(
    aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default, at_zero=keeps_zero
)
def transforms(ctx: Context, self: Value, s: Sequence[Any] | None, dim: Sequence[int] | None, **_: Any) -> Value:
    if dim is None and s is not None:
        dim = range(-len(s), 0)
    return ctx.within(self, dim_indices(dim, self.ndim))


@rule(aten.fft_fftshift.default, aten.fft_ifftshift.default, at_zero=keeps_zero)
def shift(ctx: Context, self: Value, dim: Sequence[int] | None, **_: Any) -> Value:
    return ctx.within(self, dim_indices(dim, self.ndim))
