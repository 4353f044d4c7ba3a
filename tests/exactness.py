"""Compiling one prepared model for many policies and ranks, shared by the exactness tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdp_compile.capture import capture
from sdp_compile.compiler import compile_rank
from sdp_compile.ir.program import Capture
from sdp_compile.passes import LoweringKind
from sdp_compile.planning.plan import Plan, make_plan
from sdp_compile.policies import Policy
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.blocks.finding import Blocks
from sdp_compile.structure.families import Structure
from tests.models import MODELS, doubled
from tests.oracle import randomise, without_randomness


@dataclass
class Example:
    """A model in float64 with random weights, its inputs, its capture and its structure."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    captured: Capture
    structure: Structure
    blocks: Blocks

    def plan(self, policy: Policy, workers: int) -> Plan:
        return make_plan(self.captured, self.structure, policy, workers)

    def compiled(self, plan: Plan, rank: int, lowering: LoweringKind = "sliced") -> SDPModule:
        return compile_rank(self.model, self.captured, self.structure, self.blocks, plan, rank, lowering)


def example(name: str) -> Example:
    model, args, kwargs = doubled(MODELS[name]())
    without_randomness(randomise(model))
    captured = capture(model, args or kwargs)
    return Example(model, args, kwargs, captured, *analyse(captured))


def assert_every_element_owned(plan: Plan, replicas: int) -> None:
    """Every element has an owner, exactly ``replicas`` where it is cut."""
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter":
            owners = sum(plan.mask(name, rank).int() for rank in range(plan.workers))
            assert set(owners.unique().tolist()) <= {replicas, plan.workers}, name  # type: ignore[union-attr]
            assert sum(piece.numel for piece in plan.pieces(name)) == tensor.numel
