"""The command line, or a worker of ``train``, with a tiny GPT, in which workers kill themselves at chosen moments.

``DYING`` lists ``[attempt, rank, moment, number]``: in this attempt, this worker ends at its so-manieth such moment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sdp_compile.checkpoint import writing
from sdp_compile.models.gpt import GPTConfig
from sdp_compile.train import job, loop

ATTEMPTS = "DYING_ATTEMPTS"
"""The number of the attempt, where torchrun does not count them."""

ONCE = "DYING_ONCE"
"""A file that the only worker makes that dies, together with its agent: agents count attempts each for itself."""

_counts: Counter[str] = Counter()


def tiny() -> GPTConfig:
    return GPTConfig(layers=2, width=16, heads=2, hidden=32, sequence=16)


def attempt() -> int:
    if ATTEMPTS not in os.environ:
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return int(os.environ[ATTEMPTS])


def moment(name: str) -> None:
    _counts[name] += 1
    if [attempt(), int(os.environ["RANK"]), name, _counts[name]] in json.loads(os.environ.get("DYING", "[]")):
        if ONCE in os.environ:
            try:
                Path(os.environ[ONCE]).touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def install() -> None:
    cross_entropy, write, all_reduce = loop.cross_entropy, writing._write, dist.all_reduce

    def measured(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            moment("forward")
            logits.register_hook(lambda gradient: moment("backward"))
        return cross_entropy(logits, targets)

    def reduced(*arguments: Any, **options: Any) -> Any:
        work = all_reduce(*arguments, **options)
        if _counts["forward"] >= 3:  # from the third step on
            moment("collective")
        return work

    def written(*arguments: Any) -> Any:
        chunk = write(*arguments)
        moment("writing")
        return chunk

    loop.cross_entropy, writing._write, dist.all_reduce = measured, written, reduced
    job.GPTConfig = tiny  # type: ignore[assignment, misc]


if __name__ == "__main__":
    install()
    if sys.argv[1] == "worker":
        from sdp_compile.train.worker import main

        del sys.argv[1]
        main()
    else:
        from sdp_compile.cli.main import main as command_line

        command_line()
