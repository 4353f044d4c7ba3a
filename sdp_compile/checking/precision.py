"""Running a model in float64 whose code asks for lower precision in places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.ir.program import Precision, Program
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
    """Within, a cast to or a tensor of a lower floating-point precision is one of float64.

    An RMSNorm that computes in float32 would limit every comparison to float32's rounding. The original and the
    compiled model run alike in here, so nothing that they do differently is hidden.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._default = torch.get_default_dtype()

    def __enter__(self) -> InFloat64:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of factories that name no dtype, and of Python numbers
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _REINTERPRETING and (_narrow(args) or _narrow(kwargs.values())):
            args, kwargs = pytree.tree_map_only(torch.dtype, lambda dtype: _WIDER.get(dtype, dtype), (args, kwargs))
        return func(*args, **kwargs)


def _narrow(values: Any) -> bool:
    return any(isinstance(value, torch.dtype) and value in _WIDER for value in values)


def widened(value: Any) -> Any:
    """The same arguments with floating-point tensors in float64, on the CPU."""

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", _WIDER.get(tensor.dtype, tensor.dtype))

    return pytree.tree_map_only(torch.Tensor, wide, value)


def declared_wide(module: SDPModule) -> SDPModule:
    """The module, with float64 tensors, said to be captured in float64: `InFloat64` makes its graphs so as they run.

    What is verified is the graph that the user's own dtypes gave, rather than one of another capture.
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
