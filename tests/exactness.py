"""Compiling one prepared model for many policies and ranks, shared by the exactness tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdp_compile.capture import capture
from sdp_compile.compiler import assemble
from sdp_compile.lowering import lower
from sdp_compile.passes import pipeline
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Policy
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.structure.analysis import Analysis, analyse
from tests.library_models import MODELS, doubled
from tests.oracle import randomise, without_randomness


@dataclass
class Example:
    """A model in float64 with random weights, its inputs and its analysis."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    analysis: Analysis

    def plan(self, policy: Policy, workers: int) -> Plan:
        return make_plan(self.analysis, policy, workers)

    def compiled(self, plan: Plan, rank: int, lowering: LoweringKind = "sliced") -> SDPModule:
        return assemble(lower(self.analysis, plan, rank, pipeline(lowering, plan.masking)), self.model)


def example(name: str) -> Example:
    model, args, kwargs = doubled(MODELS[name]())
    without_randomness(randomise(model))
    return Example(model, args, kwargs, analyse(capture(model, args or kwargs)))


def assert_every_element_owned(plan: Plan, replicas: int) -> None:
    """Every element has an owner, exactly ``replicas`` where it is cut."""
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter":
            owners = sum(plan.mask(name, rank).int() for rank in range(plan.workers))
            assert set(owners.unique().tolist()) <= {replicas, plan.workers}, name  # type: ignore[union-attr]
            assert sum(piece.numel for piece in plan.pieces(name)) == tensor.numel
