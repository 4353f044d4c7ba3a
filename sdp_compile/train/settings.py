"""What one run of ``sdp-compile train`` was asked to do; travels to the workers as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdp_compile.errors import DistributedError, PolicyError

DEFAULT_WORKERS = 4
DEFAULT_COVERAGE = 0.5


@dataclass(frozen=True)
class TrainSettings:
    """``policy`` is a name or the path of a TOML file; None for a field keeps what that policy says."""

    workers: int = DEFAULT_WORKERS
    steps: int = 150
    policy: str = "neuron"
    coverage: float | None = None
    masking: str | None = None
    seed: int = 0
    baseline: bool = False
    output: str = "sdp-compile-out"
    json_path: str | None = None
    debug: bool = False
    batch: int = 8
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        check_policy_words(self.policy, self.coverage)

    @property
    def policy_is_file(self) -> bool:
        return is_policy_file(self.policy)

    @property
    def model_path(self) -> Path:
        return Path(self.output) / "model.safetensors"

    @property
    def report_path(self) -> Path:
        return Path(self.json_path) if self.json_path else Path(self.output) / "report.json"

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> TrainSettings:
        return cls(**json.loads(text))


def joined_workers(asked: int | None) -> int | None:
    """The size of the process group that torchrun has started this process in, or None if it has not."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    size = int(os.environ["WORLD_SIZE"])
    if asked is not None and asked != size:
        raise DistributedError(
            f"--workers {asked}: torchrun has started {size} processes (WORLD_SIZE={size}), each is one worker; "
            "leave --workers out, or change torchrun's --nproc-per-node"
        )
    return size


def is_policy_file(policy: str) -> bool:
    """Whether ``--policy`` is a path rather than a name."""
    return policy.endswith(".toml") or os.sep in policy


def check_policy_words(policy: str, coverage: float | None) -> None:
    """What can be told of ``--policy`` and ``--coverage`` before torch is imported. Raises `PolicyError`."""
    if coverage is not None and not 0 < coverage <= 1:
        raise PolicyError(
            f"coverage={coverage:g}: the share of the workers that own a unit lies in (0, 1]; "
            "0.5 halves the partitioned parameters, 1.0 is data parallelism"
        )
    if is_policy_file(policy) and not Path(policy).is_file():
        raise PolicyError(f"policy file {policy}: there is no such file; give a TOML file or a policy's name")


def policy_fields(coverage: float | None, masking: str | None) -> dict[str, Any]:
    """The policy's fields that were given beside its name."""
    return {key: value for key, value in (("coverage", coverage), ("masking", masking)) if value is not None}
