"""The subnetworks of one model, each held against the masked original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sdp_compile import NeuronPolicy
from sdp_compile.capture import capture
from sdp_compile.compiler import assemble
from sdp_compile.lowering import lower
from sdp_compile.passes import pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.structure.analysis import analyse
from tests.oracle import assert_exact, owned, randomise, relative_error, run_compiled, without_randomness

WORKERS = 4


class Network(nn.Module):
    """A function of an input and of layers, given by name."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def exact_plan(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    policy: NeuronPolicy | None = None,
    others: Iterable[Sequence[torch.Tensor]] = (),
) -> Plan:
    """Holds all workers, sliced and masked, against the original; ``others`` are inputs of other sizes."""
    model = without_randomness(randomise(model.double()))
    args = _doubled(inputs)
    analysis = analyse(capture(model, args))
    plan = make_plan(analysis, policy or NeuronPolicy(coverage=0.5), WORKERS)
    for rank in range(WORKERS):
        sliced, masked = (
            assemble(lower(analysis, plan, rank, pipeline(kind, plan.masking)), model) for kind in ("sliced", "masked")
        )
        for call in (args, *map(_doubled, others)):
            assert_exact(sliced, model, plan, rank, call, {})
        small, full = (run_compiled(module.train(), args, {}) for module in (sliced, masked))
        for mine, reference in zip(small.outputs, full.outputs, strict=True):
            assert relative_error(mine, reference) < 1e-9
        floor = 1e-5 * max(float(gradient.abs().max()) for gradient in full.gradients.values())
        for name, gradient in small.gradients.items():
            assert relative_error(gradient.reshape(-1), owned(full.gradients[name], plan, name, rank), floor) < 1e-9
    return plan


def share(plan: Plan) -> float:
    """The share of the parameters that the largest worker keeps."""
    return max(plan.memory(rank).parameters for rank in range(WORKERS)) / plan.memory().parameters


def cut(plan: Plan) -> set[str]:
    """The axes that are cut."""
    return {family.name for family in plan.families}


def _doubled(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(value.double() if value.is_floating_point() else value for value in inputs)
