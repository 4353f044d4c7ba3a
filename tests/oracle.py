"""The oracle of every exactness test: the user's original eager model, run with the parameters ``mask * theta``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sdp_compile.checking.compare import deviations, owned, relative_error
from sdp_compile.checking.oracle import (
    Run,
    disable_randomness,
    randomise,
    run_compiled,
    run_original,
    scalar,
    tensors_of,
)
from sdp_compile.planning.plan import Plan

__all__ = [
    "Run",
    "assert_exact",
    "owned",
    "randomise",
    "relative_error",
    "run_compiled",
    "run_original",
    "scalar",
    "tensors_of",
    "without_randomness",
]


def without_randomness(model: nn.Module) -> nn.Module:
    """Disables dropout and stochastic depth in place, and returns the model."""
    disable_randomness(model)
    return model


def assert_exact(
    module: nn.Module,
    model: nn.Module,
    plan: Plan,
    rank: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tolerance: float = 1e-9,
) -> None:
    """Outputs, owned gradients and running statistics on owned channels equal the oracle's, in both modes."""
    names = {name for name, _ in module.named_parameters()}
    whole = plan.masking == "backward"  # computes with theta; gradients are compared where they are owned
    for training in (True, False):
        model.train(training)
        module.train(training)
        expected = run_original(model, args, kwargs, lambda name: plan.mask(name, rank) | whole)
        found = run_compiled(module, args, kwargs)
        assert set(found.gradients) <= set(expected.gradients)
        for deviation in deviations(found, expected, plan, rank, names, set(model.state_dict())):
            assert deviation.error < tolerance, f"rank {rank}, training {training}: {deviation}"
