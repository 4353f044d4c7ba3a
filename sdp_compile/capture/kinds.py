"""Which tensors a captured graph can take: dense ones without behaviour of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


def special_kind(tensor: torch.Tensor) -> str | None:
    """Returns what is special about a tensor, such as ``"sparse_csr tensor"``, or None for an ordinary one."""
    with torch._C.DisableTorchFunctionSubclass():
        is_nested, layout = tensor.is_nested, tensor.layout
    if is_nested:
        return "nested tensor"
    if layout is not torch.strided:
        return f"{str(layout).removeprefix('torch.')} tensor"
    kind = type(tensor)
    return None if _is_ordinary(kind) else f"tensor of the class {kind.__module__}.{kind.__qualname__}"


def _is_ordinary(kind: type[torch.Tensor]) -> bool:
    """Whether operators treat the class as they treat `torch.Tensor`."""
    if issubclass(kind, (FakeTensor, nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
        return True
    if kind.__module__.startswith("torchvision.tv_tensors"):  # only says what an image is
        return True
    function, dispatch = _function(kind.__torch_function__), _function(kind.__torch_dispatch__)
    return (
        function in (_function(torch.Tensor.__torch_function__), nn.Parameter.__torch_function__)
        and dispatch == torch.Tensor.__torch_dispatch__
    )


def _function(method: Any) -> Any:
    return getattr(method, "__func__", method)
