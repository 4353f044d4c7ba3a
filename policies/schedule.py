"""Schedules: training as a sequence of phases, each with a policy and a share of the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from sdp_compile.errors import PolicyError
from sdp_compile.policies.base import Policy
from sdp_compile.policies.fields import PolicyModel
from sdp_compile.policies.registry import resolve_policy
from sdp_compile.toml import to_toml

_UNSEEDED = ("cyclic", "balanced", "nested", "core")
"""The designs of the package that give the same owners with every seed."""


class LearningRate(PolicyModel):
    """How the learning rate changes over the steps of a schedule, as a share of its peak.

    Args:
        shape: ``"stable"`` warms up, stays at the peak, and decays linearly at the end; ``"cosine"`` warms up and
            decays as a half cosine; ``"constant"`` warms up and stays.
        warm_up: The share of the steps in which it rises linearly.
        decay: The share of the steps in which it falls, for ``"stable"``.
        last: The share of the peak with which it ends.

    Source: warm-up/stable/decay is that of MiniCPM (arXiv 2404.06395); growing models under it, arXiv 2511.04981.
    """

    shape: Literal["stable", "cosine", "constant"] = "stable"
    """How it falls."""

    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of the steps in which it rises."""

    decay: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The share of the steps in which it falls, for ``"stable"``."""

    last: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the peak with which it ends."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.shape == "stable" and self.warm_up + self.decay > 1:
            raise ValueError(f"warm_up={self.warm_up:g} and decay={self.decay:g} are more than all steps together.")
        return self

    def at(self, step: int, steps: int) -> float:
        """Returns the share of the peak of one step.

        Args:
            step: The step, from 0.
            steps: The number of steps.
        """
        rising = self.warm_up * steps
        if step + 1 < rising:
            return (step + 1) / rising
        if self.shape == "constant":
            return 1.0
        falling = steps - rising if self.shape == "cosine" else self.decay * steps
        done = min(max((step - (steps - falling)) / max(falling, 1), 0.0), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if self.shape == "cosine" else 1 - done
        return self.last + (1 - self.last) * left


class Phase(PolicyModel):
    """A part of a schedule: which policy, and for how long.

    Args:
        policy: What is partitioned and how, in any form that `sdp_compile.sdp_compile` takes.
        share: The share of all steps, in (0, 1].
        resample_every: Draws owners again after so many steps, with the policy's next ``seed``; its ``design`` must be
            one that draws, such as ``"rolling"`` or ``"random"``.
        alternate: A policy for every ``alternate_every``-th step.
        alternate_every: How often ``alternate`` has its turn.
        learning_rate: What the learning rate of the schedule is multiplied by in this phase.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    policy: Policy
    """What is partitioned and how."""

    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """The share of all steps."""

    resample_every: Annotated[int, Field(ge=1)] | None = None
    """Draws owners again after so many steps."""

    alternate: Policy | None = None
    """A policy for every ``alternate_every``-th step."""

    alternate_every: Annotated[int, Field(ge=2)] | None = None
    """How often ``alternate`` has its turn."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What the learning rate of the schedule is multiplied by."""

    def __init__(self, policy: Any = None, /, **values: Any) -> None:
        if policy is not None:
            values["policy"] = policy
        super().__init__(**values)

    @field_validator("policy", "alternate", mode="before")
    @classmethod
    def _resolved(cls, policy: Any) -> Any:
        return policy if policy is None else resolve_policy(policy)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.alternate is None) != (self.alternate_every is None):
            raise ValueError("alternate and alternate_every belong together: a policy, and how often it has its turn.")
        if self.resample_every is not None and self.policy.design in (None, *_UNSEEDED):
            raise ValueError(
                f"resample_every={self.resample_every} draws owners with another seed, but design="
                f"{self.policy.design!r} does not draw. Use design='rolling' or design='random'."
            )
        return self

    def policy_at(self, step: int) -> Policy:
        """Returns the policy of a step, counted from the beginning of the phase."""
        if self.alternate is not None and self.alternate_every is not None and (step + 1) % self.alternate_every == 0:
            return self.alternate
        if self.resample_every is None or step < self.resample_every:
            return self.policy
        return self.policy.replace(seed=self.policy.seed + step // self.resample_every)

    def policies(self) -> tuple[Policy, ...]:
        """Returns the policies of the phase, the first one if owners are drawn again."""
        return (self.policy,) if self.alternate is None else (self.policy, self.alternate)

    def describe(self) -> dict[str, Any]:
        """Returns the phase as plain data, with the keys of its TOML form."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in ("policy", "alternate")}
        own = {name: value for name, value in own.items() if value is not None}
        rest = {} if self.alternate is None else {"alternate": self.alternate.describe()}
        return {**own, **self.policy.describe(), **rest}


class Schedule(PolicyModel):
    """Training as a sequence of phases. Schedules are frozen, and their TOML form has the same fields.

    In TOML, each phase is a table ``[[phase]]`` with the fields of `Phase` and those of its policy::

        steps = 10000
        [learning_rate]
        shape = "stable"
        decay = 0.25
        [[phase]]
        share = 0.7
        policy = "neuron"
        coverage = 0.5
        [[phase]]
        share = 0.3
        policy = "neuron"
        coverage = 1.0

    Args:
        phases: The phases, in order. Their shares add up to 1.
        steps: The number of steps. A schedule of several phases needs it where it is used.
        learning_rate: How the learning rate changes, for `rate`.
        rate_by_owners: While the model follows the schedule, optimizers multiply the learning rate of each parameter
            by the share of the workers that own it, to this power: 0.5 is its square root, and 0 leaves it.

    Raises:
        PolicyError: A field does not exist or its value is not valid.
    """

    phases: tuple[Phase, ...]
    """The phases, in order."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """The number of steps."""

    learning_rate: LearningRate = LearningRate()
    """How the learning rate changes."""

    rate_by_owners: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The power of a parameter's share of owners by which its learning rate is multiplied."""

    def __init__(self, phases: Any = None, /, **values: Any) -> None:
        if phases is not None:
            values["phases"] = phases
        super().__init__(**values)

    @field_validator("phases", mode="before")
    @classmethod
    def _as_phases(cls, phases: Any) -> Any:
        if isinstance(phases, (str, Mapping)) or not isinstance(phases, Iterable):
            raise ValueError(f"phases must be a list of Phase objects, got {phases!r:.80}.")
        return tuple(_phase(number, one) for number, one in enumerate(phases, 1))

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _as_learning_rate(cls, value: Any) -> Any:
        return LearningRate(**value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _shares_are_all(self) -> Self:
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the phases must add up to 1, and add up to {total:g}.")
        if self.steps is not None and self.steps < len(self.phases):
            raise ValueError(f"steps={self.steps} is less than one step for each of {len(self.phases)} phases.")
        return self

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first step of each phase, from 0.

        Raises:
            PolicyError: The number of steps is not known.
        """
        if len(self.phases) == 1:
            return (0,)
        steps, starts, done = self._known_steps, [0], 0.0
        for number, phase in enumerate(self.phases[:-1], 1):
            done += phase.share
            left = len(self.phases) - number  # each phase has a step
            starts.append(min(max(round(done * steps), starts[-1] + 1), steps - left))
        return tuple(starts)

    def phase_at(self, step: int) -> int:
        """Returns the number of the phase, from 0, that a step belongs to; the last one after all steps.

        Args:
            step: The step, from 0: the number of steps done before it.

        Raises:
            PolicyError: ``step`` is not a number of steps, or the number of all steps is not known.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise PolicyError(f"step must be the number of steps done, an integer of at least 0, got {step!r}.")
        return max(number for number, start in enumerate(self.starts) if start <= step)

    def policy_at(self, step: int) -> Policy:
        """Returns the policy of a step.

        Args:
            step: The step, from 0.

        Raises:
            PolicyError: ``step`` is not a number of steps, or the number of all steps is not known.
        """
        number = self.phase_at(step)
        return self.phases[number].policy_at(step - self.starts[number])

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step as a share of its peak, for ``torch.optim.lr_scheduler.LambdaLR``.

        What ``rate_by_owners`` does comes on top, when optimizers step.

        Args:
            step: The step, from 0.

        Raises:
            PolicyError: The number of steps is not known.
        """
        return self.learning_rate.at(step, self._known_steps) * self.phases[self.phase_at(step)].learning_rate

    def policies(self) -> tuple[Policy, ...]:
        """Returns the policies of all phases; one of each phase in which owners are drawn again."""
        return tuple(policy for phase in self.phases for policy in phase.policies())

    def on_nodes(self, node_size: int | None) -> Schedule:
        """Returns the schedule with this ``node_size`` in all policies; itself for None."""
        if node_size is None:
            return self
        phases = [
            phase.replace(
                policy=phase.policy.replace(node_size=node_size),
                alternate=None if phase.alternate is None else phase.alternate.replace(node_size=node_size),
            )
            for phase in self.phases
        ]
        return self.replace(phases=phases)

    def describe(self) -> dict[str, Any]:
        """Returns the schedule as plain data, with the keys of its TOML form."""
        steps = {} if self.steps is None else {"steps": self.steps}
        by_owners = {"rate_by_owners": self.rate_by_owners} if self.rate_by_owners else {}
        return {
            **steps,
            **by_owners,
            "learning_rate": self.learning_rate.model_dump(),
            "phase": [phase.describe() for phase in self.phases],
        }

    def to_toml(self) -> str:
        """Returns the schedule as a TOML document, which `resolve_schedule` reads."""
        return to_toml(self.describe())

    @property
    def _known_steps(self) -> int:
        if self.steps is None:
            raise PolicyError(
                "The schedule does not know the number of steps. Pass Schedule(..., steps=N), or "
                "sdp.resolve_schedule(NAME or FILE, steps=N), or write `steps` into its TOML file."
            )
        return self.steps


def _phase(number: int, value: Any) -> Phase:
    if isinstance(value, Phase):
        return value
    if isinstance(value, Policy):
        raise ValueError(f"phase {number} is a policy; pass Phase(policy, share=...).")
    if not isinstance(value, Mapping):
        raise ValueError(f"phase {number} must be a Phase or a mapping of its fields, got {value!r:.80}.")
    own = {key: value[key] for key in Phase.model_fields if key in value and key != "policy"}
    rest = {str(key): entry for key, entry in value.items() if key not in own}
    policy = rest.get("policy")
    try:
        return Phase(policy if isinstance(policy, Policy) and len(rest) == 1 else resolve_policy(rest), **own)
    except PolicyError as error:
        raise ValueError(f"phase {number}: {error}") from None
