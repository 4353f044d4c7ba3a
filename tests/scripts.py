"""Runs scripts as torchrun does, and the command line, in forks of a process that has imported torch already.

What torchrun itself does, and what the command line imports, is tested elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from sdp_compile.cli.main import main

_ROOT = Path(__file__).parent.parent
_GRACE = 5.0
"""How long the others may go on after the first failure, in seconds."""


@dataclass(frozen=True)
class Result:
    """What became of a script.

    Attributes:
        returncode: The first exit code but 0; None for a process that did not end in time.
        stdout: What the processes have printed, one after the other.
        stderr: The same of their errors.
    """

    returncode: int | None
    stdout: str
    stderr: str


def run_script(script: Path, *arguments: str, workers: int, limit: float = 450.0) -> Result:
    """Runs a script with the environment variables that torchrun sets.

    Args:
        script: The script.
        arguments: Its arguments.
        workers: In how many processes.
        limit: After how many seconds they are killed.
    """
    return _run([str(script), *arguments], workers, limit)


def run_command(*arguments: str, workers: int | None = None, limit: float = 450.0) -> Result:
    """Runs ``sdp-compile``, in the folder of the repository.

    Args:
        arguments: Its arguments.
        workers: In how many processes, with the environment variables that torchrun sets; None for one without them.
        limit: After how many seconds they are killed.
    """
    return _run(["sdp-compile", *arguments], workers, limit)


def _run(command: list[str], workers: int | None, limit: float) -> Result:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    number = workers or 1
    with TemporaryDirectory() as name:
        folder, processes = Path(name), list[ForkServerProcess]()
        for rank in range(number):
            variables = _variables(rank, workers, store.port) if workers else {}
            process = context.Process(target=_process, args=(folder, command, variables, rank), daemon=False)
            process.start()
            processes.append(process)
        codes = _ended(processes, time.monotonic() + limit)
        texts = ["".join((folder / f"{rank}.{kind}").read_text() for rank in range(number)) for kind in ("out", "err")]
    return Result(next((code for code in codes if code), 0) if None not in codes else None, *texts)


def _variables(rank: int, workers: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers, "GROUP_RANK": 0}
    variables = {name: str(number) for name, number in numbers.items()}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return variables | {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}


def _ended(processes: list[ForkServerProcess], deadline: float) -> list[int | None]:
    """Waits until all have ended. Returns their exit codes; None for those that were killed because of the time."""
    running = list(processes)
    while running and (left := deadline - time.monotonic()) > 0:
        wait([process.sentinel for process in running], left)
        for process in list(running):
            if not process.is_alive():
                running.remove(process)
                if process.exitcode:
                    deadline = min(deadline, time.monotonic() + _GRACE)
    codes = [process.exitcode for process in processes]
    for process in running:
        process.kill()
        process.join()
    failed = any(codes)
    return [0 if code is None and failed else code for code in codes]


def _process(folder: Path, command: list[str], variables: Mapping[str, str], rank: int) -> None:
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", **variables})
    os.chdir(_ROOT)
    sys.argv[:] = command
    code = 0
    try:
        if command[0] == "sdp-compile":
            main()
        else:
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
