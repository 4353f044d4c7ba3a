"""Agreement of all workers before a collective: they continue together or fail together.

A rank that fails alone, or that runs another model or policy, would leave the others waiting in a collective until its
timeout. So every rank first states in the process group's key-value store what it is about to do. Worker 0 reads all
statements and publishes one verdict. The traffic grows linearly with the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

from sdp_compile.errors import DistributedError
from sdp_compile.ir.program import Capture
from sdp_compile.runtime.comm.groups import peers_are_fake
from sdp_compile.runtime.waiting.patience import step, waiting
from sdp_compile.runtime.waiting.words import workers_text

LIMIT_SECONDS = 55.0
"""How long a rank waits for the others at the start: all have raised within a minute of the first arrival."""

_INTERRUPTED_SECONDS = 2.0
"""How long an interrupted worker 0 serves the store, so that the others learn of it."""


def fingerprint(capture: Capture, values: Mapping[str, Tensor] = MappingProxyType({})) -> tuple[str, ...]:
    """Returns one line per parameter, buffer and tie of a model, which must be the same on all ranks.

    Args:
        capture: The captured model.
        values: Its tensors; all ranks must have the same ones on the meta device.
    """
    lines = [
        f"{name}: {tensor.kind} {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        + (" requires_grad" if tensor.requires_grad else "")
        + (" on the meta device" if name in values and values[name].is_meta else "")
        for name, tensor in capture.state.items()
    ]
    ties = [f"{name}: tied to {target}" for name, target in sorted(capture.aliases.items()) if name != target]
    return (*lines, *ties)


class Handshake:
    """A context in which a rank prepares something, ended by ``agree``.

    An exception that leaves the context before ``agree`` is raised here unchanged, and the other ranks raise a
    `DistributedError` that quotes it.

    Args:
        group: The workers' process group; without one, or without peers in it, nothing happens.
        topic: The call that the ranks must all make, for errors.
        limit: How long a rank waits for the others, in seconds.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, topic: str = "sdp.compile()", limit: float = LIMIT_SECONDS
    ) -> None:
        self._topic, self._limit = topic, limit
        self._done = group is None or peers_are_fake(group)
        if group is not None and not self._done:
            self._rank, self._workers = dist.get_rank(group), dist.get_world_size(group)
            store = dist.distributed_c10d._get_process_group_store(group)
            # The number of the call is kept in the store, where it outlives every object of this process.
            call = PrefixStore("sdp_compile", store).add(f"calls/{self._rank}", 1)
            self._store = PrefixStore(f"sdp_compile/{call}", store)

    def __enter__(self) -> Handshake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._done or error is None:
            return
        self._done = True
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        # Who interrupts a process does not want to wait for the others.
        limit = self._limit if isinstance(error, Exception) else min(self._limit, _INTERRUPTED_SECONDS)
        try:
            self._publish({"error": text})
            if self._rank != 0:
                self._store.add("read", 1)  # this rank knows already
            else:
                self._decide(f"Worker 0 failed in {self._topic}: {text}", deadline=time.monotonic() + limit)
        except (RuntimeError, OSError):
            # The store is gone too. The user's own error is what matters.
            pass

    def agree(self, statement: str, details: Sequence[str] = (), what: str = "plan digest") -> None:
        """Waits until all ranks have stated the same.

        Args:
            statement: What is compared.
            details: More lines that are compared; the first difference is quoted.
            what: What the statement is called in the error.

        Raises:
            DistributedError: On every rank, if the ranks differ, one of them failed, or one does not arrive in time.
        """
        if self._done:
            return
        self._done = True
        with waiting("handshake", f"in {self._topic}", tuple(range(self._workers)), self._rank):
            verdict = self._agree(statement, details, what)
        if verdict:
            raise DistributedError(verdict)

    def _agree(self, statement: str, details: Sequence[str], what: str) -> str:
        """Returns why the workers do not agree; empty if they do."""
        deadline = time.monotonic() + self._limit
        try:
            lines = hashlib.sha256("\n".join(details).encode()).hexdigest()
            if not self._store.check([f"details/{lines}"]):
                self._store.set(f"details/{lines}", json.dumps(list(details)))
            self._publish({"topic": self._topic, "statement": statement, "details": lines})
            if self._rank != 0:
                return self._await_verdict(deadline)
            verdict = self._collect(what, deadline)
            self._decide(verdict, deadline)
            return verdict
        except (RuntimeError, OSError) as error:
            raise DistributedError(
                f"Worker {self._rank} lost the process group's store in {self._topic}, because the process that serves "
                f"it has ended ({_first_line(error)}). Look at the other ranks' output for the cause."
            ) from error

    def _publish(self, message: dict[str, Any]) -> None:
        self._store.set(f"rank/{self._rank}", json.dumps(message))

    def _await_verdict(self, deadline: float) -> str:
        if not self._wait(["verdict"], deadline + 2):  # worker 0 itself may need all of its time
            missing = self._missing()
            # A rank that still comes must not continue without this one.
            self._publish({"error": f"gave up after waiting for {self._limit:.0f} s"})
            self._store.add("read", 1)
            return missing
        verdict = self._store.get("verdict").decode()
        self._store.add("read", 1)
        return verdict

    def _decide(self, verdict: str, deadline: float) -> None:
        """Publishes the verdict; waits until all have read a bad one, which ends this process and maybe its store."""
        self._store.set("verdict", verdict)
        while verdict and self._store.add("read", 0) < self._workers - 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    def _collect(self, what: str, deadline: float) -> str:
        """Returns worker 0's verdict over all messages; the empty text means agreement."""
        if not self._wait([f"rank/{rank}" for rank in range(self._workers)], deadline):
            return self._missing()
        texts = self._store.multi_get([f"rank/{rank}" for rank in range(self._workers)])
        messages: list[dict[str, str]] = [json.loads(text) for text in texts]
        failed = {rank: message["error"] for rank, message in enumerate(messages) if "error" in message}
        if failed:
            return f"{workers_text(failed)} failed in {self._topic}: " + _quoted(failed)
        if len({message["topic"] for message in messages}) > 1:
            return "The workers made different calls: " + _quoted(_split(messages, "topic"))
        if len({message["details"] for message in messages}) > 1:
            return self._difference([message["details"] for message in messages])
        if len({message["statement"] for message in messages}) > 1:
            return (
                f"The workers have different {what}s in {self._topic}: "
                f"{_quoted(_split(messages, 'statement'))}. Give every rank the same model, inputs and policy."
            )
        return ""

    def _difference(self, hashes: list[str]) -> str:
        ours = hashes[0]
        others = [rank for rank, hash_ in enumerate(hashes) if hash_ != ours]
        here, there = (json.loads(self._store.get(f"details/{hash_}")) for hash_ in (ours, hashes[others[0]]))
        position = next(
            (at for at, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there))
        )
        lines = [lines[position] if position < len(lines) else "nothing" for lines in (here, there)]
        same = [rank for rank, hash_ in enumerate(hashes) if hash_ == ours]
        return (
            f"The workers have different models or options: {workers_text(same)} has `{lines[0]}` where "
            f"{workers_text([rank for rank, hash_ in enumerate(hashes) if hash_ == hashes[others[0]]])} has "
            f"`{lines[1]}`"
            + (f" ({workers_text(others)} differ from worker 0)" if len(set(hashes)) > 2 else "")
            + ". Build the same model and pass the same options on every rank."
        )

    def _missing(self) -> str:
        absent = [rank for rank in range(self._workers) if not self._store.check([f"rank/{rank}"])]
        if not absent:
            return f"Worker 0 received every rank's statement in {self._topic} but did not answer in time."
        return (
            f"{workers_text(absent)} did not reach {self._topic} within {self._limit:.0f} s of the others. Every rank "
            "must call it: look at the output of the missing ranks. In a training loop, check that all ranks have the "
            "same number of batches (the case for which DDP has `Join`)."
        )

    def _wait(self, keys: list[str], deadline: float) -> bool:
        """Waits for all keys; False after the deadline. Polls, because a timed-out wait prints to the terminal."""
        pause, looked = 0.002, time.monotonic()
        while not self._store.check(keys):
            now = time.monotonic()
            if now > deadline:
                return False
            if now > looked + 1:
                looked = now
                step()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        return True


def _split(messages: list[dict[str, str]], field: str) -> dict[int, str]:
    return {rank: message[field] for rank, message in enumerate(messages)}


def _quoted(texts: dict[int, str]) -> str:
    """Returns the distinct texts, each after the ranks that it comes from."""
    ranks: dict[str, list[int]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(rank)
    return "; ".join(f"{workers_text(numbers)}: {text}" for text, numbers in ranks.items())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
