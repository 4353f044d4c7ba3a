"""``model.advance(step, optimizer)``: the plan that a schedule wants for a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.planning.moves import Traffic
from sdp_compile.replanning.replan import replan


def advance(module: Any, step: int, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Traffic | None:
    """Gives a compiled module the plan of a step. Collective; see `SDPModule.advance`.

    Args:
        module: The compiled module.
        step: The number of steps done.
        optimizer: The optimizers of its parameters.

    Returns:
        What the workers have sent each other; None if the plan stays.

    Raises:
        SDPError: If the module has no schedule, or `replan` cannot follow it.
    """
    if module.schedule is None:
        raise SDPError(
            "model.advance() follows a schedule, and the model was compiled with a policy. Pass a Schedule to "
            "sdp.compile(), or call model.replan()."
        )
    policy = module.schedule.policy_at(step)
    return None if module.plan.policy == policy.describe() else replan(module, policy, optimizer)
