"""What a contestant costs: the FLOPs and the time of a step, and the state of a worker, over the dense model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdp_compile.emulation.emulate import Emulation
from sdp_compile.hardware import Hardware
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Phase, Policy, Schedule
from sdp_compile.policies.placement import grid
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.simulate import Strategy, simulate
from sdp_compile.simulator.work import state_of
from sdp_compile.study.spec import Contestant, Match, Study


@dataclass(frozen=True)
class Cost:
    """What a step or a run costs over dense data parallelism's.

    Attributes:
        flops: Floating-point operations.
        time: Seconds.
        state: Bytes of parameters, gradients and AdamW state of the worker that holds most.
    """

    flops: float
    time: float
    state: float


class Costs:
    """The costs of the steps of one contestant.

    Args:
        study: The study.
        contestant: The contestant.
        emulation: Its emulation.
        dense: The plan of dense data parallelism.
    """

    def __init__(self, study: Study, contestant: Contestant, emulation: Emulation, dense: Plan) -> None:
        self._study, self._contestant, self._emulation, self._dense = study, contestant, emulation, dense
        self._known: dict[str, Cost] = {}
        self._last: tuple[Policy | None, Cost | None] = (None, None)

    def phase(self, phase: Phase) -> Cost:
        """Returns the mean cost of a step of a phase, and its largest state."""
        first = self.policy(phase.policy)
        if phase.alternate is None or phase.alternate_every is None:
            return first
        other, share = self.policy(phase.alternate), 1 / phase.alternate_every
        return Cost(
            first.flops * (1 - share) + other.flops * share,
            first.time * (1 - share) + other.time * share,
            max(first.state, other.state),
        )

    def policy_at(self, schedule: Schedule, step: int) -> Cost:
        """Returns the cost of one step of a schedule."""
        phase = schedule.phases[schedule.phase_at(step)]
        chosen = schedule.policy_at(step)
        return self.policy(
            phase.alternate if phase.alternate is not None and chosen == phase.alternate else phase.policy
        )

    def run(self, schedule: Schedule) -> Cost:
        """Returns the mean cost of a step of a schedule, and its largest state."""
        costs = [(phase.share, self.phase(phase)) for phase in schedule.phases]
        return Cost(
            sum(share * cost.flops for share, cost in costs),
            sum(share * cost.time for share, cost in costs),
            max(cost.state for _, cost in costs),
        )

    def steps(self, schedule: Schedule, match: Match) -> int:
        """Returns the number of steps that cost what dense data parallelism's cost."""
        cost = self.run(schedule)
        batch = self._contestant.batch or self._study.batch
        ratio = {"steps": 1.0, "time": cost.time, "flops": cost.flops}[match]
        # A step's time and FLOPs are those of its samples.
        return max(len(schedule.phases), round(self._study.steps / (ratio * (batch / self._study.batch))))

    def policy(self, policy: Policy) -> Cost:
        """Returns the cost of a step by a policy."""
        last, cost = self._last  # writing a policy as text takes as long as a small model's forward
        if last is policy and cost is not None:
            return cost
        key = policy.to_toml()
        if key not in self._known:
            self._known[key] = self._of(policy)
        self._last = (policy, self._known[key])
        return self._known[key]

    def _of(self, policy: Policy) -> Cost:
        plan, dense = self._emulation.plan_of(policy), self._dense
        ranks = [workers[0] for workers in plan.worker_classes()]
        forward = self._owned_flops(plan, policy) / dense.flops()
        whole = plan.flops() / dense.flops()
        # Backward masking computes everything but the gradients of weights that a worker does not own.
        flops = forward if policy.masking == "forward" else (2 * whole + forward) / 3
        state = max(self._state(plan, rank) for rank in ranks) / dense.memory().total
        return Cost(flops, self._time(policy, plan, flops), state)

    def _state(self, plan: Plan, rank: int) -> float:
        """Returns the bytes that a worker holds: with local steps, the values and the momentum of outer steps, too."""
        copies = (2 if self._contestant.local_steps > 1 else 0) + (1 if self._contestant.mean_of_last else 0)
        return state_of(plan, rank, self._contestant.sharded) + copies * plan.memory(rank).parameters

    def _owned_flops(self, plan: Plan, policy: Policy) -> float:
        """Returns the forward FLOPs of what a worker owns, on average."""
        if policy.masking == "backward":
            plan = self._emulation.plan_of(policy.replace(masking="forward"))
        return sum(plan.flops(rank) for rank in range(plan.workers)) / plan.workers

    def _time(self, policy: Policy, plan: Plan, flops: float) -> float:
        hardware = self._study.hardware
        if hardware is not None:
            return self._predicted(plan, hardware)
        known: Mapping[str, float] = self._study.step_time
        # Designs such as "core" give units different numbers of owners; their mean is what the policy asks for.
        asked = grid(plan.workers, policy.coverage, policy.replicas, policy.slots)
        coverage = asked.replicas / plan.workers
        small = "" if self._contestant.share == 1 else f"small {self._contestant.share:g}"
        key = small or f"{policy.masking} {coverage:g}"
        measured = known.get(f"sharded {key}") if self._contestant.sharded else None
        if measured is None:
            measured = known.get(key, 1.0 if not small and not plan.families else flops)
        return float(measured)

    def _predicted(self, plan: Plan, hardware: Hardware) -> float:
        """Returns the simulator's time of a step over that of dense data parallelism, for as many samples."""
        cluster, batch = Cluster.of(hardware, plan.workers), self._contestant.batch or self._study.batch

        def seconds(one: Plan, strategy: Strategy, samples: int) -> float:  # a plan has the FLOPs of the examples
            return simulate(one, replace(cluster, flops=cluster.flops * EXAMPLES / samples), strategy).seconds

        own = seconds(plan, "sdp-sharded" if self._contestant.sharded else "sdp" if plan.families else "ddp", batch)
        return own / seconds(self._dense, "ddp", self._study.batch) / (batch / self._study.batch)


EXAMPLES = 2
"""Samples of the inputs with which models are captured."""
