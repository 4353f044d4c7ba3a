"""Under backward masking: the parts beside the owned one, joined dimension by dimension, are the full parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdp_compile.planning.unowned import unowned_parts
from sdp_compile.policies import BlockPolicy, NeuronPolicy
from tests.planning.plans import plan_for
from tests.synthetic import attention, blocks, convolutions, mlp

EVERY_AXIS: dict[str, Any] = {"axes": "all", "replicas": 3}
CASES = {
    "mlp": (mlp(hidden=10, width=3), NeuronPolicy(masking="backward")),
    "attention": (attention(), NeuronPolicy(masking="backward")),
    "convolutions along two dimensions": (convolutions((6, 5, 4)), NeuronPolicy(masking="backward", **EVERY_AXIS)),
    "random units": (mlp(hidden=12), NeuronPolicy(masking="backward", design="random", seed=3)),
    "blocks": (blocks((4, 6, 3, 5)), BlockPolicy(masking="backward")),
}


@pytest.mark.parametrize("name", CASES)
def test_owned_and_unowned_parts_joined_are_the_full_parameter(name: str) -> None:
    structure, policy = CASES[name]
    plan = plan_for(structure, policy, 4)
    for rank in range(4):
        parts = unowned_parts(plan, rank)
        for parameter, tensor in plan.state.items():
            full = np.arange(tensor.numel).reshape(tensor.shape)
            mask = plan.mask(parameter, rank).numpy()
            assert (parameter in parts) is not mask.all(), "what is owned whole has no other part"
            if mask.all():
                continue
            held = {rest.name: full[np.ix_(*rest.index)] for rest in parts[parameter]}
            assert len(held) == len(parts[parameter]) and all(r.shape == held[r.name].shape for r in parts[parameter])
            assert sum(values.size for values in held.values()) + mask.sum() == full.size, "each element is held once"
            if not mask.any():
                (rest,) = parts[parameter]
                assert rest.dim is None and (held[rest.name] == full).all()
                continue
            joined = full[np.ix_(*plan.kept(parameter, rank))]  # type: ignore[misc]
            for rest in parts[parameter]:
                joined = alternating(joined, held[rest.name], rest.dim, rest.runs)
            assert (joined == full).all()


def alternating(owned: Any, rest: Any, dim: Any, runs: tuple[int, ...]) -> Any:
    """Stretches of the two along one dimension in turns, as ``runs`` says."""
    starts, stretches = [0, 0], []
    for number, length in enumerate(runs):
        part = number % 2
        stretches.append(np.take((owned, rest)[part], range(starts[part], starts[part] + length), axis=dim))
        starts[part] += length
    return np.concatenate(stretches, axis=dim)


def test_forward_masking_has_no_unowned_parts() -> None:
    assert unowned_parts(plan_for(mlp(), NeuronPolicy(), 4), 0) == {}
