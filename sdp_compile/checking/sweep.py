"""Checks many models in a separate process, so that a model that crashes or hangs fails only its own row."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from sdp_compile.checking.verdict import CheckResult
from sdp_compile.errors import SDPError

if TYPE_CHECKING:
    from sdp_compile.policies import Policy

TIMEOUT = 600.0
"""Longest time for one model, in seconds."""

_REPORT = "SDP_COMPILE_CHECK_FD"


@dataclass(frozen=True)
class Row:
    """The result of one model; ``seconds`` includes the time to build it."""

    name: str
    seconds: float
    result: CheckResult

    @property
    def has_nothing_to_cut(self) -> bool:
        """Whether the model was captured but has nothing to cut at the policy's level."""
        return self.result.verdict == "refused" and self.result.captured and self.result.stage == "plan"

    @property
    def is_failure(self) -> bool:
        """Whether the model is not exact, although it has something to cut."""
        return not self.result.is_exact and not self.has_nothing_to_cut

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, ready for JSON."""
        return {"spec": self.name, "total_seconds": self.seconds, **self.result.to_dict()}


def sweep(
    names: Iterable[str],
    policy: Policy,
    workers: int,
    ranks: Sequence[int] | None = None,
    seed: int = 0,
    timeout: float = TIMEOUT,
) -> Iterator[Row]:
    """Checks models one after the other, and yields each row as soon as it is done.

    Args:
        names: The models, ``library:name`` each.
        policy: The policy to plan with.
        workers: Number of workers to plan for.
        ranks: The workers to verify; default: all.
        seed: Random seed for the weights.
        timeout: Longest time for one model, in seconds.
    """
    job = {
        "policy": policy.describe(),
        "workers": workers,
        "ranks": None if ranks is None else list(ranks),
        "seed": seed,
    }
    worker: _Worker | None = None
    try:
        for name in names:
            worker = worker or _Worker()
            start = time.perf_counter()
            try:
                result = CheckResult.from_dict(worker.check({**job, "name": name}, timeout))
            except _ProcessLost as error:
                worker.close()
                worker = None
                result = _failed(name, job, str(error))
            yield Row(name, time.perf_counter() - start, result)
    finally:
        if worker is not None:
            worker.close()


def _failed(name: str, job: dict[str, Any], reason: str, stage: str = "process") -> CheckResult:
    return CheckResult(name, "failed", reason, stage, job["workers"], tuple(job["ranks"] or ()), job["policy"])


class _ProcessLost(Exception):
    """The process ended or did not answer in time."""


class _Worker:
    """A process that reads one job per line and checks its model."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdp_compile.checking.sweep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=(writing,),
            env={"HF_HUB_OFFLINE": "1", **os.environ, _REPORT: str(writing)},
        )
        os.close(writing)
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(os.fdopen(reading),), daemon=True).start()

    def _listen(self, stream: TextIO) -> None:
        with stream:
            for line in stream:
                self.answers.put(line)
        self.answers.put("")

    def check(self, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=timeout)
        except queue.Empty:
            raise _ProcessLost(f"no verdict within {timeout:.0f} s") from None
        except OSError:
            line = ""
        if not line:
            code = self.process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise _ProcessLost(f"its process {how}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def check_named(job: dict[str, Any]) -> CheckResult:
    """Builds and checks one model of a library."""
    from sdp_compile.checking.check import check
    from sdp_compile.models.zoo import build
    from sdp_compile.policies import resolve_policy

    try:
        model, inputs = build(job["name"])
    except SDPError as error:
        return _failed(job["name"], job, str(error), "build")
    except Exception as error:
        return _failed(job["name"], job, f"{type(error).__name__}: {error}", "build")
    policy = resolve_policy(job["policy"])
    return check(model, policy, inputs, workers=job["workers"], ranks=job["ranks"], seed=job["seed"])


def main() -> None:
    """Runs the process: reads a job per line from standard input, writes a result per line to its file descriptor."""
    with os.fdopen(int(os.environ.pop(_REPORT)), "w", buffering=1) as report:
        for line in sys.stdin:
            report.write(json.dumps(check_named(json.loads(line)).to_dict()) + "\n")


if __name__ == "__main__":
    main()
