"""Runs a model in float64 even if its code asks for lower precision in places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.ir.program import Precision, Program
from sdp_compile.ir.reads import torch_defaults
from sdp_compile.runtime.module.sdp_module import SDPModule

_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}

_REINTERPRETING = frozenset({torch.ops.aten.view.dtype})


class InFloat64(TorchDispatchMode):
    """Context in which casts to, and new tensors of, a lower floating-point precision use float64 instead.

    An RMSNorm that computes in float32 would limit all comparisons to float32 rounding. The original and the compiled
    model both run in this context, so it hides no difference between them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._default = torch.get_default_dtype()

    def __enter__(self) -> InFloat64:
        self._default = torch.get_default_dtype()
        torch_defaults.dtype = self._default  # the graphs stay right: both models run in this context
        torch.set_default_dtype(torch.float64)  # for factories without a dtype, and Python numbers
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)
        torch_defaults.dtype = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _REINTERPRETING and (_narrow(args) or _narrow(kwargs.values())):
            args, kwargs = pytree.tree_map_only(torch.dtype, lambda dtype: _WIDER.get(dtype, dtype), (args, kwargs))
        return func(*args, **kwargs)


class CastsOfFloat32(TorchFunctionMode):
    """Context in which a cast to float32 returns a float64 tensor itself, as it would return one of float32.

    For the oracle of a float32 model. Without gradients it matters whether a cast makes a new tensor: ``x.float()`` is
    ``x`` then, with its gradient.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        wanted = args[1:] or tuple(kwargs.values())
        is_cast = (func is torch.Tensor.float and not wanted) or (
            func in (torch.Tensor.to, torch.Tensor.type) and wanted == (torch.float32,) and set(kwargs) <= {"dtype"}
        )
        if is_cast and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **kwargs)


def _narrow(values: Any) -> bool:
    return any(isinstance(value, torch.dtype) and value in _WIDER for value in values)


def widened(value: Any) -> Any:
    """Returns the same arguments with floating-point tensors in float64 on the CPU."""

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", _WIDER.get(tensor.dtype, tensor.dtype))

    return pytree.tree_map_only(torch.Tensor, wide, value)


def as_float64(module: SDPModule) -> SDPModule:
    """Returns the module with its capture marked as float64, so that it accepts float64 inputs in `InFloat64`.

    Its graphs stay as they are, so the check verifies those captured with the user's own dtypes.
    """

    def wide(dtype: torch.dtype) -> torch.dtype:
        return _WIDER.get(dtype, dtype)

    state = {
        name: tensor if tensor.kind == "constant" else replace(tensor, dtype=wide(tensor.dtype))
        for name, tensor in module.capture.state.items()
    }
    programs: dict[str, Program] = {
        mode: replace(program, precision=Precision(tuple(map(wide, program.precision.inputs))))
        for mode, program in module.programs.items()
    }
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    analysis = replace(module.analysis, capture=replace(module.capture, state=state))
    return SDPModule(replace(module.lowered, analysis=analysis), tensors, programs)
