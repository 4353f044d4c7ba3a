"""When gradients become ready in backward."""

from __future__ import annotations

from functools import cached_property

from sdp_compile.planning.plan import Plan


class Readiness:
    """The trainable parameters of a plan, and when in backward their gradients are ready.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def order(self) -> list[str]:
        """The names of the trainable parameters, by first use."""
        return [name for name in self.plan.order if self.plan.is_trainable(name)]

    @cached_property
    def shares(self) -> dict[str, float]:
        """For each parameter, the share of backward after which its gradient is ready, by parameter bytes."""
        total = sum(self.plan.state[name].nbytes for name in self.order) or 1
        nbytes, result = 0, {}
        for name in reversed(self.order):
            nbytes += self.plan.state[name].nbytes
            result[name] = nbytes / total
        return result
