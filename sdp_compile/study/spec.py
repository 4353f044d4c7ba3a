"""What a study is: a task, contestants, seeds and learning rates, written down as TOML before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from sdp_compile.hardware import HARDWARE, Hardware
from sdp_compile.policies import LearningRate, NeuronPolicy, Phase, Schedule, resolve_schedule
from sdp_compile.policies.fields import PolicyModel
from sdp_compile.study.tasks.base import Shape
from sdp_compile.toml import read_toml

Match = Literal["steps", "time", "flops"]
"""What a contestant has as much of as dense data parallelism."""

_OF_MACHINES = {one.name for one in fields(Hardware)} - {"algorithm", "memory"}
"""What a study can say of the machines of a cluster."""

_VARIED = {"moments", "mean_of_last", "local_steps"}
"""Fields of a contestant that most leave alone; a run without them is identified without them."""


class Contestant(PolicyModel):
    """One way to train.

    Args:
        name: What it is called in the results.
        schedule: A schedule or policy by name or file, or its content. Without one, all workers train the whole model.
        share: The share of heads, hidden units or channels that the model has: 0.5 is the dense model of a
            subnetwork's size.
        batch: Samples per worker; by default the study's.
        dropout: The share of hidden units that are dropped.
        drop_branch: The share of residual branches that are dropped.
        sharded: Whether the owners of a unit split its gradients and optimizer state. That changes what is held, and
            the time of a step, but no value.
        rate_by_owners: The learning rate of each parameter is multiplied by the share of the workers that own it, to
            this power: 0.5 is the square root of a unit's batch, 1 is linear.
        moments: Whether AdamW keeps its moments where the plan changes, or begins with new ones.
        mean_of_last: The full model is the mean over the last steps, of this share of all.
        local_steps: With more than 1, each worker trains alone for so many steps; then the owners of a unit take a step
            with Nesterov's momentum by their mean change (DiLoCo, arXiv 2311.08105).
        match: What it has as much of as dense data parallelism.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Annotated[str, Field(min_length=1)]
    """What it is called in the results."""

    schedule: Schedule = Schedule([Phase(NeuronPolicy(coverage=1.0))])
    """How it is trained."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of heads, hidden units or channels that the model has."""

    batch: Annotated[int, Field(ge=1)] | None = None
    """Samples per worker."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of hidden units that are dropped."""

    drop_branch: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of residual branches that are dropped."""

    sharded: bool = False
    """Whether the owners of a unit split its gradients and optimizer state."""

    rate_by_owners: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The power of the share of owners by which learning rates are multiplied; None for the schedule's."""

    moments: Literal["keep", "clear"] = "keep"
    """What happens to AdamW's moments where the plan changes."""

    mean_of_last: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the steps over which the full model's values are averaged."""

    local_steps: Annotated[int, Field(ge=1)] = 1
    """Steps that each worker takes alone, between outer steps."""

    match: tuple[Match, ...] = ("time",)
    """What it has as much of as dense data parallelism."""

    @property
    def shape(self) -> Shape:
        """Which model of the task it trains."""
        return Shape(self.share, self.dropout, self.drop_branch)

    @property
    def power(self) -> float:
        """The power of the share of owners by which its learning rates are multiplied."""
        return self.schedule.rate_by_owners if self.rate_by_owners is None else self.rate_by_owners

    @property
    def is_dense(self) -> bool:
        """Whether it is dense data parallelism of the full model."""
        is_whole = all(policy == NeuronPolicy(coverage=1.0) for policy in self.schedule.policies())
        return is_whole and self.shape == Shape() and self.local_steps == 1

    @field_validator("schedule", mode="before")
    @classmethod
    def _resolved(cls, schedule: Any) -> Any:
        return resolve_schedule(schedule)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.local_steps > 1:
            contrary = {
                "rate_by_owners": self.power,
                'moments = "clear"': self.moments == "clear",
                "sharded": self.sharded,
                'match = "time"': "time" in self.match,
            }
            found = [field for field, is_there in contrary.items() if is_there]
            if found:
                raise ValueError(
                    f"local_steps={self.local_steps} does not go with {' and '.join(found)}: each worker has its own "
                    "AdamW, and the time of a step was not measured. Match steps or flops, and leave out the others."
                )
        return self

    @field_validator("match", mode="before")
    @classmethod
    def _as_tuple(cls, match: Any) -> Any:
        return (match,) if isinstance(match, str) else tuple(match)


class Study(PolicyModel):
    """A study. Its TOML form has the same fields, with a table ``[[contestant]]`` for each contestant.

    Args:
        task: The name of a task.
        options: Options of the task.
        workers: Number of workers N.
        steps: Steps of dense data parallelism: the time that all contestants have.
        batch: Samples per worker and step.
        seeds: Seeds of the runs that are reported.
        tuning_seeds: Seeds of the runs that choose learning rates, by their mean.
        learning_rates: The peaks that each contestant tries; it takes the one that is best on held-out data that the
            reported figures do not use.
        learning_rate: How the learning rate changes, the same for all: that of a contestant's schedule does not count.
        clip: Upper bound of the gradient's norm.
        weight_decay: AdamW's.
        evaluations: How often the full model is evaluated in a run.
        step_time: The time of a step over dense data parallelism's, by "MASKING COVERAGE" or "small SHARE", or
            the same after "sharded " where state is. What is missing takes the share of the FLOPs.
        cluster: Machines for which the simulator predicts the time of a step, instead of ``step_time``: ``hardware``
            names some that `sdp-compile simulate` knows, and its other options, such as ``nodes`` and
            ``inter_bandwidth``, have the same names and units.
        contestants: Who takes part.
    """

    task: str
    options: Mapping[str, Any] = {}
    workers: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: tuple[int, ...] = (1000,)
    learning_rates: tuple[float, ...]
    learning_rate: LearningRate = LearningRate()
    clip: float | None = 1.0
    weight_decay: float = 0.0
    evaluations: Annotated[int, Field(ge=1)] = 8
    step_time: Mapping[str, float] = {}
    cluster: Mapping[str, Any] = {}
    contestants: tuple[Contestant, ...]

    @property
    def hardware(self) -> Hardware | None:
        """The machines of ``cluster``; None without."""
        if not self.cluster:
            return None
        own = {key: value for key, value in self.cluster.items() if key != "hardware"}
        return Hardware(**{**HARDWARE[self.cluster.get("hardware", "default")], **own})

    @field_validator("seeds", "tuning_seeds", "learning_rates", mode="before")
    @classmethod
    def _as_tuple(cls, values: Any) -> Any:
        return tuple(values) if isinstance(values, list) else values

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _as_learning_rate(cls, value: Any) -> Any:
        return LearningRate(**value) if isinstance(value, Mapping) else value

    @field_validator("contestants", mode="before")
    @classmethod
    def _as_contestants(cls, values: Any) -> Any:
        return tuple(one if isinstance(one, Contestant) else Contestant(**one) for one in values)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        names = [one.name for one in self.contestants]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two contestants are called {twice!r}.")
        if not (self.learning_rates and self.seeds and self.tuning_seeds):
            raise ValueError("learning_rates, seeds and tuning_seeds need one entry at least.")
        self._check_cluster()
        return self

    def _check_cluster(self) -> None:
        name, known = self.cluster.get("hardware", "default"), {"hardware", *_OF_MACHINES}
        unknown = [key for key in self.cluster if key not in known]
        if unknown:
            raise ValueError(f"cluster has no field {unknown[0]!r}. Its fields are {', '.join(sorted(known))}.")
        for key, value in self.cluster.items():
            if key != "hardware" and (type(value) not in (int, float) or not value > 0):
                raise ValueError(f"{key}={value!r} must be a number above 0.")
        if name not in HARDWARE:
            raise ValueError(f"hardware={name!r} is not known. There are {', '.join(HARDWARE)}.")
        if self.cluster and self.step_time:
            raise ValueError("step_time has measured steps and cluster predicts them: leave one of them out.")
        nodes = self.cluster.get("nodes", 1)
        if type(nodes) is not int or nodes < 1 or self.workers % nodes:
            raise ValueError(f"nodes={nodes!r} must be a whole number that divides workers={self.workers}.")

    @classmethod
    def load(cls, path: Path) -> Study:
        """Returns the study of a TOML file.

        Raises:
            PolicyError: If the file cannot be read, or a field does not exist or is not valid.
        """
        values = read_toml(path, "study")
        contestants = []
        for number, given in enumerate(values.pop("contestant", []), 1):
            own = {key: value for key, value in given.items() if key in Contestant.model_fields}
            rest = {key: value for key, value in given.items() if key not in own}
            if rest:  # the fields of a policy or a schedule, side by side with those of the contestant
                own["schedule"] = rest
            file = own.get("schedule")
            if isinstance(file, str) and file.endswith(".toml"):
                own["schedule"] = path.parent / file
            contestants.append(Contestant(**{"name": f"contestant {number}", **own}))
        return cls(**values, contestants=tuple(contestants))

    def schedule_of(self, contestant: Contestant, steps: int) -> Schedule:
        """Returns a contestant's schedule over a number of steps, with the learning rate of the study."""
        return contestant.schedule.replace(
            steps=steps, learning_rate=self.learning_rate, rate_by_owners=contestant.power
        )

    def runs(self, contestant: Contestant, peak: float | None) -> Iterator[Run]:
        """Yields the runs of a contestant: those that choose a learning rate, or the reported ones with it.

        Args:
            contestant: The contestant.
            peak: The learning rate; None to choose one.
        """
        for match in contestant.match if peak is not None else contestant.match[:1]:
            for seed in self.tuning_seeds if peak is None else self.seeds:
                for rate in self.learning_rates if peak is None else (peak,):
                    yield Run(contestant.name, match, seed, rate, peak is None)

    def key(self, run: Run) -> str:
        """Returns what identifies a run by everything that its result depends on."""
        contestant = self.contestant(run.contestant)
        left_out = {"contestants", "seeds", "learning_rates", "tuning_seeds", *([] if self.cluster else ["cluster"])}
        shared = self.model_dump(mode="json", exclude=left_out)
        own = {
            **contestant.model_dump(mode="json", exclude={"schedule", "name", "match", "rate_by_owners", *_VARIED}),
            **contestant.model_dump(mode="json", include=_VARIED, exclude_defaults=True),
            **({"rate_by_owners": contestant.power} if contestant.power else {}),
            "schedule": contestant.schedule.replace(rate_by_owners=0.0).describe(),
        }
        ran = {key: value for key, value in asdict(run).items() if key != "contestant"}
        text = json.dumps([shared, own, ran], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def contestant(self, name: str) -> Contestant:
        """Returns the contestant of a name."""
        return next(one for one in self.contestants if one.name == name)


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        contestant: Who.
        match: What it has as much of as dense data parallelism.
        seed: Seed of the weights and of the data.
        peak: The highest learning rate.
        tunes: Whether it chooses a learning rate.
    """

    contestant: str
    match: Match
    seed: int
    peak: float
    tunes: bool
