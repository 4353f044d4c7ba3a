"""What happens in one trial, drawn from its seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WORKERS = 4
STEPS = 8
FIRST = 2
"""The step from which a run that repeats others goes on."""

Fault = Literal["kill", "stop", "stop and kill", "full disk", "read-only folder"]
Moment = Literal["training", "save", "operation"]

_FAULTS: dict[Fault, int] = {"kill": 55, "stop": 10, "stop and kill": 10, "full disk": 15, "read-only folder": 10}
_MOMENTS: dict[Moment, int] = {"training": 45, "save": 30, "operation": 25}
_MOST_OPERATIONS = 45
"""About as many file operations as a worker does in a run."""


@dataclass(frozen=True)
class Kind:
    """What is trained: the policy's level, perhaps with ``-backward``, and whether the optimizer is sharded."""

    level: str
    sharded: bool

    def __str__(self) -> str:
        return f"{self.level}{' sharded' if self.sharded else ''}"


KINDS = tuple(Kind(level, sharded) for level in ("neuron", "neuron-backward", "block") for sharded in (False, True))


@dataclass(frozen=True)
class Trial:
    """One run and its fault.

    Attributes:
        seed: What it was drawn from.
        kind: What is trained.
        redundancy: ``redundancy=`` of the saves.
        keep: ``keep=`` of the saves.
        saves: The steps after which is saved, and whether in the background.
        repeats: Whether the run goes on from an early checkpoint, in a folder with later ones that it replaces.
        fault: What happens.
        victims: To whom.
        moment: When: after a share of a step, of a save, or before a file operation.
        at: Which step, which save, or which operation.
        by: The worker by whose progress the moment is told.
        share: The share of the step or the save.
        seconds: How long a worker stands still, and when the full disk is freed.
        leaves: The share of a checkpoint that still fits on the full disk.
        waits: Whether the other workers end by themselves; else they are ended, as a launcher does.
        lost: The workers whose files are removed before a checkpoint is assembled.
    """

    seed: int
    kind: Kind
    redundancy: Literal["none", "owners"]
    keep: int | None
    saves: dict[int, bool]
    repeats: bool
    fault: Fault
    victims: tuple[int, ...]
    moment: Moment
    at: int
    by: int
    share: float
    seconds: float
    leaves: float
    waits: bool
    lost: tuple[int, ...]

    @property
    def first(self) -> int:
        """The step with which the run begins."""
        return FIRST if self.repeats else 0


def drawn(seed: int, timeout: float, kinds: Sequence[Kind] = KINDS) -> Trial:
    """Returns the trial of a seed.

    Args:
        seed: The seed.
        timeout: The limit of the process group, in seconds.
        kinds: What may be trained.
    """
    chance = random.Random(seed)
    kind = chance.choice(kinds)
    repeats = chance.random() < 0.3
    first = FIRST if repeats else 0
    saves = {step: chance.random() < 0.5 for step in range(first + 1, STEPS) if chance.random() < 0.5}
    saves = saves or {STEPS // 2: chance.random() < 0.5}
    (fault,) = chance.choices(list(_FAULTS), list(_FAULTS.values()))
    (moment,) = chance.choices(list(_MOMENTS), list(_MOMENTS.values()))
    if fault == "read-only folder":  # is noticed by an operation alone
        moment = "operation"
    count = 1 if fault in ("stop", "stop and kill") else chance.choice([1, 1, 2, 3, WORKERS])
    last = {"training": STEPS - first, "save": len(saves), "operation": _MOST_OPERATIONS}[moment]
    redundancy: Literal["none", "owners"] = "owners" if chance.random() < 0.5 else "none"
    return Trial(
        seed,
        kind,
        redundancy,
        chance.choice([None, 1, 2, 3]),
        saves,
        repeats,
        fault,
        tuple(sorted(chance.sample(range(WORKERS), count))),
        moment,
        chance.randrange(last),
        chance.randrange(WORKERS),
        chance.random() * 1.1,
        timeout * chance.choice([0.1, 0.3, 1.5]),
        chance.random(),
        chance.random() < 0.25,
        (chance.randrange(WORKERS),) if redundancy == "owners" else (),
    )
