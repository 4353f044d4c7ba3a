"""What one run of ``sdp-compile bench`` was asked to do; travels to the workers as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sdp_compile.bench.variants import Variant, choose
from sdp_compile.command_words import DEFAULT_COVERAGE, DEFAULT_WORKERS, check_file, check_policy_words
from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.models.configuration import Size
from sdp_compile.models.words import check_words

GPT = "gpt"
"""The MODEL that is benched by default: see `sdp_compile.bench.work`."""


@dataclass(frozen=True)
class BenchSettings:
    """``model`` is a MODEL of the command line; ``batch``, the samples per worker, None that of the model's inputs.

    ``size`` is the configuration of a named model; None takes the small one where weights are needed.
    ``bucket_bytes`` None is each library's own. Every variant runs ``rounds`` turns of ``steps`` timed steps, after
    ``warmup`` untimed ones. ``timeout`` is the longest, in seconds, that a variant's workers may take to get ready or
    for one turn.
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

    def __post_init__(self) -> None:
        check_policy_words("neuron", self.coverage)
        if self.coverage is not None and self.replicas is not None:
            raise PolicyError("--coverage and --replicas exclude each other: coverage is replicas / workers.")
        if self.replicas is not None and self.replicas > self.workers:
            raise PolicyError(f"--replicas {self.replicas}: there are only {self.workers} workers; see --workers.")
        if self.workers < 2:
            raise SDPError(
                f"--workers {self.workers}: workers that exchange nothing are no comparison; take 2 or more."
            )
        choose(self.variants, self.compile)
        if self.model != GPT:
            check_words(self.model, self.inputs, self.overrides, self.size)
        elif self.inputs or self.overrides or self.size:
            raise SDPError("--input, --set, --small and --full belong to a MODEL; name one.")
        check_file("--json", self.json_path)
        check_file("--plot", self.plot_path)

    @property
    def chosen(self) -> tuple[Variant, ...]:
        return choose(self.variants, self.compile)

    @property
    def policy_fields(self) -> dict[str, Any]:
        """How many workers own a unit, as a policy's fields."""
        if self.replicas is not None:
            return {"replicas": self.replicas}
        return {"coverage": DEFAULT_COVERAGE if self.coverage is None else self.coverage}

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> BenchSettings:
        fields: dict[str, Any] = json.loads(text)
        for name in ("variants", "inputs", "overrides"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
