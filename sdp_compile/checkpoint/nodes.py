"""Which workers see the same disk: a folder of checkpoints may be one of each node's own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError


def check_storage(storage: object, what: str) -> None:
    """Raises `SDPError` for an unknown kind of storage; ``what`` is the call that it was passed to."""
    if storage not in ("shared", "local"):
        raise SDPError(f"storage of {what} must be 'shared' or 'local', got {storage!r}.")


@dataclass(frozen=True)
class Node:
    """The workers that see this worker's disk.

    Attributes:
        rank: This worker.
        members: These workers, itself among them.
        leaders: The first worker of each node.
    """

    rank: int
    members: tuple[int, ...]
    leaders: tuple[int, ...]

    @property
    def leader(self) -> int:
        """The worker that writes what a node needs once."""
        return self.members[0]

    @property
    def is_leader(self) -> bool:
        """Whether that is this worker."""
        return self.rank == self.leader


def node_of(folder: Path, team: Team, rank: int, workers: int) -> Node:
    """Finds out who sees the same folder, by files that each worker makes in it for a moment. Collective.

    Args:
        folder: This worker's folder; it is made if it does not exist.
        team: The workers.
        rank: This worker.
        workers: The number of workers.
    """
    token = team.gather(secrets.token_hex(8))[0]
    probes = [folder / f".probe-{token}-{worker}" for worker in range(workers)]
    with team.together():
        folder.mkdir(parents=True, exist_ok=True)
        probes[rank].touch()
    members = [worker for worker, probe in enumerate(probes) if probe.exists()]
    leaders = team.gather(members[0] if members else rank)
    probes[rank].unlink(missing_ok=True)
    return Node(rank, tuple(members) or (rank,), tuple(sorted(set(leaders))))
