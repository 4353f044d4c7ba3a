"""The settings of one run of ``sdp-compile train``, which travel to the workers as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sdp_compile.command_words import (
    DEFAULT_WORKERS,
    check_file_words,
    check_passes_words,
    check_policy_words,
    is_policy_file,
)
from sdp_compile.errors import DistributedError, PolicyError, SDPError
from sdp_compile.processes import STORE_PORT


@dataclass(frozen=True)
class TrainSettings:
    """The options of ``train``.

    Args:
        policy: a registered name, or the path of a TOML file.
        schedule: the name of a schedule, or the path of its TOML file, instead of a policy.
        coverage, masking, node_size: fields of the policy; None keeps the policy's own.
        passes: names of passes to add to the default ones, or the path of a TOML file.
        reduction: how the gradients of a unit's owners make up the unit's; see `sdp_compile.sdp_compile`.
        output: the folder for ``model.safetensors``, and for ``report.json`` unless ``json_path`` names another file.
        batch: samples per worker and step.
        learning_rate: the peak of the schedule.
        rate_by_owners: the power of a parameter's share of owners by which its learning rate is multiplied; None for
            the schedule's.
        sharded: whether owners split the optimizer state of what they share.
        checkpoint: the folder for checkpoints; None saves none.
        every: saves a checkpoint after so many steps.
        keep: how many checkpoints stay; None keeps all.
        resume: ``"auto"`` for the newest checkpoint if there is one, or the path of one.
        asynchronous: whether checkpoints are written while training goes on.
        repair: whether to repair what differs between at least three owners, and to go on.
        reset_lost_optimizer_state: whether to go on without optimizer states that are lost.
        local_checkpoint: whether the folder is on a disk of each node's own.
        max_restarts: how often the launcher starts the workers again after it has lost one.
        min_workers: the least number of workers that train; None: the number at the start.
    """

    workers: int = DEFAULT_WORKERS
    steps: int = 150
    policy: str = "neuron"
    schedule: str | None = None
    coverage: float | None = None
    masking: str | None = None
    node_size: int | None = None
    passes: str | None = None
    seed: int = 0
    baseline: bool = False
    output: str = "sdp-compile-out"
    json_path: str | None = None
    debug: bool = False
    batch: int = 8
    learning_rate: float = 2e-3
    reduction: str = "mean"
    rate_by_owners: float | None = None
    sharded: bool = False
    checkpoint: str | None = None
    every: int = 50
    keep: int | None = None
    resume: str | None = None
    asynchronous: bool = False
    repair: bool = False
    reset_lost_optimizer_state: bool = False
    local_checkpoint: bool = False
    max_restarts: int = 0
    min_workers: int | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None:
            if self.coverage is not None or self.masking is not None:
                raise PolicyError(
                    "--coverage and --masking are those of a policy, and each phase of a schedule has its own. Write "
                    "them into the phases of a TOML file."
                )
            check_file_words("--schedule", self.schedule, "a schedule's name")
        check_policy_words(self.policy, self.coverage, self.node_size, self.workers)
        check_passes_words(self.passes)
        if self.resume == "auto" and self.checkpoint is None:
            raise SDPError("--resume auto looks for checkpoints in the folder of --checkpoint. Add --checkpoint DIR.")
        if self.asynchronous and self.checkpoint is None:
            raise SDPError("--asynchronous is how checkpoints are saved, and none are. Add --checkpoint DIR.")
        if self.reset_lost_optimizer_state and self.resume is None:
            raise SDPError("--reset-lost-optimizer-state is for going on from a checkpoint. Add --resume auto|PATH.")
        if self.local_checkpoint and (
            self.checkpoint is None or self.asynchronous or self.resume not in (None, "auto")
        ):
            raise SDPError(
                "--local-checkpoint says that the folder of --checkpoint is on each node's own disk. Add --checkpoint "
                "DIR, leave out --asynchronous, and resume with --resume auto."
            )
        self._check_losses()

    def _check_losses(self) -> None:
        """Checks what is to happen when workers are lost."""
        if self.max_restarts and self.checkpoint is None:
            raise SDPError(
                "--max-restarts goes on from the newest checkpoint, but none is saved. Add --checkpoint DIR."
            )
        if self.max_restarts and self.resume not in (None, "auto"):
            raise SDPError("--max-restarts goes on from the newest checkpoint of --checkpoint. Pass --resume auto.")
        if self.min_workers is None:
            return
        if self.workers < self.min_workers:
            raise DistributedError(
                f"Only {self.workers} workers are left, and --min-workers is {self.min_workers}. Start more, or pass a "
                "smaller --min-workers."
            )
        for workers in self.fewer_workers():
            try:
                check_policy_words(self.policy, self.coverage, self.node_size, workers)
            except PolicyError as error:
                raise PolicyError(f"--min-workers {self.min_workers}: {error}") from error

    def fewer_workers(self) -> range:
        """Returns with how many workers training may have to go on: torchrun loses all of a node's together."""
        by_torchrun = "RANK" in os.environ and STORE_PORT not in os.environ
        node = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if by_torchrun else 1
        return range(self.workers - node, (self.min_workers or self.workers) - 1, -node)

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
    """Returns the size of the process group that torchrun started this process in; None without torchrun.

    Raises `DistributedError` where ``asked``, the given --workers, is another number.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    size = int(os.environ["WORLD_SIZE"])
    if asked is not None and asked != size:
        raise DistributedError(
            f"--workers {asked} does not match the {size} processes that torchrun started (WORLD_SIZE={size}), one per "
            "worker. Leave --workers out, or change torchrun's --nproc-per-node."
        )
    return size
