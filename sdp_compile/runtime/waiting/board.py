"""Where the workers of one common group write what they do: the group's key-value store, which all of them can read."""

from __future__ import annotations

import time

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from sdp_compile.runtime.waiting.state import State
from sdp_compile.runtime.waiting.words import places

ANSWERED_WITHIN = 4.0
"""For how many seconds a worker that asks waits for the answers of the others, which look once a second."""


class Board:
    """One worker's view of what all workers write. Its methods raise a RuntimeError once the store has ended.

    Args:
        group: The common group.

    Attributes:
        rank: This worker.
        workers: The number of workers.
        processes: The rank of each worker in the world.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.workers = dist.get_rank(group), dist.get_world_size(group)
        self.processes = tuple(dist.get_process_group_ranks(group))
        # A connection of its own, because the main thread can wait in that of the group.
        store = dist.distributed_c10d._get_process_group_store(group).clone()
        # The number of the call is kept in the store, where it outlives every object of this process.
        number = PrefixStore("sdp_compile", store).add(f"boards/{self.rank}", 1)
        self._store = PrefixStore(f"sdp_compile/board/{number}", store)
        self.write(State())

    def write(self, state: State) -> None:
        """Writes what this worker does."""
        self._store.set(f"state/{self.rank}", state.text())

    def asked(self) -> int:
        """Returns how often any worker has asked what the others do."""
        return int(self._store.add("asked", 0))

    def ask(self) -> tuple[dict[int, State], int]:
        """Asks all workers what they do. Returns the last answer of each, and the number of the question."""
        asked, end = int(self._store.add("asked", 1)), time.monotonic() + ANSWERED_WITHIN
        keys = [f"state/{rank}" for rank in range(self.workers)]
        while True:
            answers = [State.of(text) for text in self._store.multi_get(keys)]
            if all(state.left or state.asked >= asked for state in answers) or time.monotonic() > end:
                return dict(enumerate(answers)), asked
            time.sleep(0.1)

    def is_first(self, occasion: str) -> bool:
        """Whether this worker is the first of all to call this for an occasion; it then acts for all of them."""
        return int(self._store.add(f"first/{occasion}", 1)) == 1

    def verdict(self) -> str:
        """Returns why the workers cannot go on; empty while they can."""
        return str(self._store.get("verdict").decode()) if self._store.check(["verdict"]) else ""

    def decide(self, verdict: str) -> str:
        """Publishes a verdict. Returns the first one that any worker has published."""
        return str(self._store.compare_set("verdict", "", verdict).decode())

    def report(self) -> str:
        """Returns what all workers did when a collective had failed; empty if the worker that asks has ended."""
        if self.is_first("report"):
            self._store.set("report", places(*self.ask()))
        end = time.monotonic() + ANSWERED_WITHIN + 1
        while not self._store.check(["report"]):
            if time.monotonic() > end:
                return ""
            time.sleep(0.05)
        return str(self._store.get("report").decode())
