"""Optimizer kernels of the device compute the same bits wherever an element stands, so owners need no broadcast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.runtime.probing.elementwise import needs_broadcast

KERNELS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW, foreach": (torch.optim.AdamW, {"foreach": True}),
    "AdamW, fused": (torch.optim.AdamW, {"fused": True}),
    "Adam, fused": (torch.optim.Adam, {"fused": True}),
    "SGD, foreach": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "SGD, fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "AdamW, capturable": (torch.optim.AdamW, {"capturable": True}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_owners_need_no_broadcast(kernel: str, dtype: torch.dtype, cuda: torch.device, record_property: Any) -> None:
    kind, options = KERNELS[kernel]
    optimizer = kind(nn.Linear(4, 4, device=cuda, dtype=dtype).parameters(), **options)
    needed = needs_broadcast(optimizer, cuda)
    record_property("needs_broadcast", needed)
    assert not needed
