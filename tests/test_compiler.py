"""Arguments of `sdp.compile` that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile import PlanError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "torchrun"),
        ({"workers": 0}, "workers must be"),
        ({"workers": 2, "rank": 2}, "0 to 1"),
        ({"workers": 2, "rank": 0, "lowering": "full"}, "lowering must be"),
        ({"workers": 2, "rank": 0, "bucket_bytes": 0}, "bucket_bytes must be"),
        ({"workers": 2, "rank": 0, "comm_dtype": torch.int8}, "comm_dtype"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(PlanError, match=message):
        sdp.compile(model, "neuron", (torch.randn(2, 4),), **arguments)
