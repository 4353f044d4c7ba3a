"""The models of these tests on a device, and their subnetworks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile import BlockPolicy, NeuronPolicy, Policy
from sdp_compile.capture import capture
from sdp_compile.compiler import assemble
from sdp_compile.lowering import lower
from sdp_compile.passes import pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.structure.analysis import Analysis, analyse
from tests.library_models import MODELS, doubled
from tests.oracle import randomise, without_randomness

WORKERS, RANK = 4, 1
POLICIES: Mapping[str, Policy] = {
    "neuron": NeuronPolicy(coverage=0.5),
    "block": BlockPolicy(coverage=0.5),
    "backward neuron": NeuronPolicy(coverage=0.5, masking="backward"),
    "backward block": BlockPolicy(coverage=0.5, masking="backward"),
}


@dataclass(frozen=True)
class Example:
    """A model with random weights on a device, its inputs, and what capture found there."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    analysis: Analysis

    def subnetwork(self, policy: str) -> tuple[SDPModule, Plan]:
        plan = make_plan(self.analysis, POLICIES[policy], WORKERS)
        lowered = lower(self.analysis, plan, RANK, pipeline("sliced", plan.masking))
        return assemble(lowered, self.model), plan


@cache
def example(name: str, device: torch.device, dtype: torch.dtype = torch.float64) -> Example:
    model, args, kwargs = doubled(MODELS[name]())
    without_randomness(randomise(model))
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _moved(t, device, dtype), (args, dict(kwargs)))
    model = copy.deepcopy(model).to(device, dtype)
    return Example(model, args, kwargs, analyse(capture(model, args or kwargs)))


def _moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
