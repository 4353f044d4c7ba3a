"""Saves to a disk of each node's own: each has the files of its workers, and the manifest of all of them."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sdp_compile.checkpoint import folder as folders
from sdp_compile.checkpoint.items import Item
from sdp_compile.checkpoint.manifest import FILE, METADATA, private_name
from sdp_compile.checkpoint.nodes import Node
from sdp_compile.checkpoint.team import Team
from sdp_compile.checkpoint.writing import Written, read_part, write_bytes


class Job(Protocol):
    """The checkpoint that is written."""

    staging: Path
    """The hidden folder in which it comes to be."""

    attempt: str
    """Tells it from other attempts; see `sdp_compile.checkpoint.folder.staged_name`."""

    def write(self, items: Iterable[Item], private: Any) -> None:
        """Writes what this worker writes."""

    def described(self, written: list[Written]) -> tuple[str, str]:
        """Returns the manifest's text, and torch's own description in Base64. On worker 0."""


def save_local(
    job: Job,
    step: int,
    keep: int | None,
    node: Node,
    team: Team,
    sizes: Sequence[int],
    items: Iterable[Item],
    private: Any,
) -> None:
    """Writes a checkpoint to the disks of all nodes. Collective.

    A manifest says of every worker's files, so it is written when all of them have reached their disks. Older
    checkpoints are removed when all nodes have the new one.

    Args:
        job: The checkpoint.
        step: Its step.
        keep: How many stay on each disk.
        node: The workers that share this one's disk.
        team: All workers.
        sizes: How many bytes of values each worker writes.
        items: The values that this worker writes.
        private: What only this worker has, encoded.
    """
    staged, rank = job.staging, node.rank
    try:
        with team.together():
            if node.is_leader:
                folders.claim(staged.parent)
                folders.begin(staged.parent, step, sum(sizes[worker] for worker in node.members), job.attempt)
        mine, texts = ("", ""), ("", "")
        with team.together():
            job.write(items, private)
            mine = read_part(staged, rank), (staged / private_name(rank)).read_text()
        everyone = team.gather(mine)
        # One number for all nodes, of which one may have lost its disk and so know of no checkpoint before.
        order = 1 + max(team.gather(folders.newest_order(staged.parent) if node.is_leader else 0))
        with team.together():
            if rank == 0:
                texts = job.described([Written.model_validate_json(text) for text, _ in everyone])
        manifest, metadata = team.gather(texts)[0]
        with team.together():
            if node.is_leader:
                # What only one worker has is small, and would be lost with its disk.
                for worker in set(range(len(everyone))).difference(node.members):
                    write_bytes(staged / private_name(worker), everyone[worker][1].encode())
                write_bytes(staged / METADATA, b64decode(metadata))
                write_bytes(staged / FILE, manifest.encode())
                place = folders.finish(staged, order)
        with team.together():
            if node.is_leader:
                folders.prune(staged.parent, keep, place)
    except BaseException:
        if node.is_leader:
            folders.discard(staged)
        raise
    team.gather(None)  # worker 0, which serves the store, may end the process next
