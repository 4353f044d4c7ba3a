"""The tensors of a module by name."""

from __future__ import annotations

import torch
from torch import nn

from sdp_compile.runtime.tensors import local_tensors, replace_tensors


def test_tied_tensors_are_replaced_everywhere() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    weight, mean = nn.Parameter(torch.ones(3, 3)), torch.ones(2)
    replace_tensors(model, {"0.weight": weight, "2.running_mean": mean})
    assert model[0].weight is weight and model[1].weight is weight and model[2].running_mean is mean
    assert {"0.weight", "1.weight", "2.running_var"} <= local_tensors(model).keys()
