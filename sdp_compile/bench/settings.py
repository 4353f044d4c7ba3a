"""The settings of one run of ``sdp-compile bench``, which workers receive as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdp_compile.bench.variants import REFERENCES, SCHEDULES, VARIANTS, Variant, choose
from sdp_compile.command_words import (
    DEFAULT_COVERAGE,
    DEFAULT_WORKERS,
    check_file,
    check_file_words,
    check_folder,
    check_policy_words,
)
from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.models.configuration import Size
from sdp_compile.models.words import check_words

GPT = "gpt"
"""The default MODEL; see `sdp_compile.bench.work`."""


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a bench run.

    Args:
        model: A MODEL of the command line.
        workers: Number of workers.
        rounds: Number of turns per variant.
        steps: Timed steps per turn.
        warmup: Untimed steps before the first turn.
        batch: Samples per worker; None takes those of the model's inputs.
        coverage, replicas: Owners per unit; at most one of the two.
        variants: Names or patterns of variants; empty for all, or for DDP, FSDP2 and the schedule's with a schedule,
            whose own variants all take part if none of them is named.
        compile: Whether compiled variants take part.
        bucket_bytes: Size of a gradient bucket; None takes each library's default.
        timeout: Longest time, in seconds, for a variant's start and for each turn.
        seed: Random seed for weights, data and the order of turns.
        inputs: ``--input`` options, which describe the model's inputs.
        overrides: ``--set`` options, which override the model's configuration.
        size: Configuration of a named model; None takes the small one where weights are needed.
        json_path, plot_path: Files to write.
        profile_path: Folder for a trace of each variant; None for no profile.
        schedule: Name or TOML file of a schedule whose phases are measured, too; None for none.

    Raises:
        SDPError: If a setting is out of range or two settings exclude each other.
    """

    model: str = GPT
    workers: int = DEFAULT_WORKERS
    rounds: int = 5
    steps: int = 2
    warmup: int = 3
    batch: int | None = None
    coverage: float | None = None
    replicas: int | None = None
    variants: tuple[str, ...] = ()
    compile: bool = True
    bucket_bytes: int | None = None
    timeout: float = 300.0
    seed: int = 0
    inputs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    size: Size | None = None
    json_path: str | None = None
    plot_path: str | None = None
    profile_path: str | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        check_policy_words("neuron", self.coverage)
        if self.coverage is not None and self.replicas is not None:
            raise PolicyError(
                "--coverage and --replicas exclude each other. Give one of them: coverage = replicas / workers."
            )
        if self.replicas is not None and self.replicas > self.workers:
            raise PolicyError(f"--replicas {self.replicas} exceeds --workers {self.workers}.")
        if self.workers < 2:
            raise SDPError(f"--workers {self.workers}: a comparison needs at least 2 workers.")
        choose(self.variants, self.compile, self._known)
        if self.schedule is not None:
            check_file_words("--schedule", self.schedule, "a schedule's name")
            if self.profile_path is not None:
                raise SDPError("--profile and --schedule exclude each other. Leave one of them out.")
        if self.model != GPT:
            check_words(self.model, self.inputs, self.overrides, self.size)
        elif self.inputs or self.overrides or self.size:
            raise SDPError("--input, --set, --small and --full need a MODEL. Name one, or leave them out.")
        check_file("--json", self.json_path)
        check_file("--plot", self.plot_path)
        check_folder("--profile", self.profile_path)

    @property
    def chosen(self) -> tuple[Variant, ...]:
        """The variants that take part."""
        chosen = choose(self.variants, self.compile, self._known)
        if self.schedule is None:
            return chosen
        if not self.variants:
            return tuple(one for one in chosen if one.base in REFERENCES or one.kind == "schedule")
        if any(one.kind == "schedule" for one in chosen):
            return chosen
        return (*chosen, *choose((), self.compile, SCHEDULES))

    @property
    def _known(self) -> Mapping[str, Variant]:
        return VARIANTS if self.schedule is None else VARIANTS | SCHEDULES

    @property
    def policy_fields(self) -> dict[str, Any]:
        """The fields of a policy that say how many workers own a unit."""
        if self.replicas is not None:
            return {"replicas": self.replicas}
        return {"coverage": DEFAULT_COVERAGE if self.coverage is None else self.coverage}

    def dumps(self) -> str:
        """Returns the settings as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> BenchSettings:
        """Returns the settings that ``dumps`` wrote."""
        fields: dict[str, Any] = json.loads(text)
        for name in ("variants", "inputs", "overrides"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
