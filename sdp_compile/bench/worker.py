"""One process of a variant: builds its model, answers the parent's commands, and waits in between."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._inductor import config as inductor

from sdp_compile.bench import formula as prediction
from sdp_compile.bench import memory
from sdp_compile.bench.contestant import Contestant, make_contestant
from sdp_compile.bench.counting import counted
from sdp_compile.bench.probe import meet, probe
from sdp_compile.bench.profiling import profiled
from sdp_compile.bench.scheduled import run_through
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import LOCAL, SCHEDULES, VARIANTS, Variant
from sdp_compile.bench.work import Work, make_work
from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.processes import local_worker_environment
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.simulator.work import training_flops

STOP: dict[str, Any] = {"stop": True}


def main(pipe: Connection, variant: str, rank: int, port: int, log: str, settings: str) -> None:
    """Runs the process.

    Args:
        pipe: The connection to the parent, with one JSON value per message.
        variant: Name of the variant.
        rank: The worker's rank.
        port: Port of the store.
        log: File that receives standard output and error.
        settings: The settings as JSON.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes; the parent ends the workers
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except FileNotFoundError:  # the parent was stopped before this worker began, and its folder is gone
        return
    os.dup2(output, 1)
    os.dup2(output, 2)
    commands = _commands(pipe)
    try:
        _serve(
            commands,
            pipe,
            {**VARIANTS, **SCHEDULES, LOCAL.name: LOCAL}[variant],
            rank,
            port,
            BenchSettings.loads(settings),
        )
    except BaseException as error:
        text = str(error) if isinstance(error, SDPError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):
            _send(pipe, {"error": text, "time": time.time(), "details": traceback.format_exc()})
        while commands.get() != STOP:  # the parent first reads what the other workers report
            pass


def _commands(pipe: Connection) -> queue.Queue[dict[str, Any]]:
    """The parent's commands, read by a thread, so that the process ends when the parent is gone."""
    commands: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        while True:
            try:
                commands.put(json.loads(pipe.recv_bytes()))
            except (EOFError, OSError):
                os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return commands


def _send(pipe: Connection, message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def _serve(
    commands: queue.Queue[dict[str, Any]],
    pipe: Connection,
    variant: Variant,
    rank: int,
    port: int,
    settings: BenchSettings,
) -> None:
    device = _join(rank, port, settings)
    if variant.kind == "schedule":
        _send(pipe, _facts(make_work(settings, rank, "meta"), device))
        while commands.get() != STOP:
            run = run_through(variant, rank, device, settings)
            _send(pipe, {"seconds": run["seconds"], "run": run})
        return
    meter = memory.PeakMeter(device)
    contestant, facts = _prepare(variant, rank, device, settings, meter)
    _send(pipe, facts)
    while (command := commands.get()) != STOP:
        if "profile" in command:
            _send(pipe, profiled(contestant.step, device, Path(command["profile"]) if rank == 0 else None).to_dict())
        elif variant.kind == "local":
            _send(pipe, probe(contestant, command["steps"], device))
        else:
            before = _check_seconds(contestant)
            seconds = timed(contestant.step, command["steps"], device)
            check = (_check_seconds(contestant) - before) / command["steps"]
            _send(pipe, {"seconds": seconds, "check": check})


def _join(rank: int, port: int, settings: BenchSettings) -> torch.device:
    """Joins the process group and returns this worker's device: an accelerator if each worker has one, else the CPU."""
    os.environ.update(local_worker_environment(rank, settings.workers))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    inductor.compile_threads = 1  # otherwise each worker starts a pool of compiler processes
    device = torch.device("cpu")
    if torch.accelerator.is_available() and torch.accelerator.device_count() >= settings.workers:
        device = torch.device(str(torch.accelerator.current_accelerator()).split(":")[0], rank)
        torch.accelerator.set_device_index(rank)
    limit = timedelta(seconds=2 * settings.timeout)  # the parent times out first and says which worker is missing
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=limit)  # type: ignore[attr-defined]
    dist.init_process_group(
        dist.get_default_backend_for_device(device), store=store, rank=rank, world_size=settings.workers, timeout=limit
    )
    return device


def _prepare(
    variant: Variant, rank: int, device: torch.device, settings: BenchSettings, meter: memory.PeakMeter
) -> tuple[Contestant, dict[str, Any]]:
    """The contestant after its warm-up, and everything that is measured apart from time."""
    started = time.perf_counter()
    work = make_work(settings, rank, device)
    predicted, flops = prediction.Prediction(0.0), None
    if variant.kind in ("ddp", "ddp-checkpoint"):
        predicted = prediction.predict_ddp(work.model, settings.workers)
    elif variant.kind == "fsdp2":
        predicted = prediction.predict_fsdp2(work.model, settings.workers)
    contestant = make_contestant(variant, work, settings)
    work = contestant.work
    if isinstance(contestant.module, SDPModule):
        plan = contestant.module.plan
        predicted = prediction.predict_sdp(plan, rank, settings.bucket_bytes or DEFAULT_BUCKET_BYTES)
        flops = float(training_flops(plan).total[rank])
    losses = [float(contestant.step()) for _ in range(settings.warmup)]
    use = memory.measure(contestant, meter)
    sent, collectives = _count(contestant, variant)
    facts = {
        "ready_seconds": time.perf_counter() - started,
        "losses": losses,
        "memory": use.to_dict(),
        "traffic": {
            "sent": sent,
            "collectives": collectives,
            "predicted": predicted.nbytes,
            "padding": predicted.padding,
            "as_predicted": predicted.holds(sent),
        },
        "flops": flops,
        **_facts(work, device),
    }
    return contestant, facts


def _facts(work: Work, device: torch.device) -> dict[str, Any]:
    """Returns what is trained, and where."""
    return {
        "samples": work.samples,
        "tokens": work.tokens,
        "parameters": sum(parameter.numel() for parameter in work.model.parameters()),
        "device": str(device),
    }


def _count(contestant: Contestant, variant: Variant) -> tuple[float, int]:
    """Bytes and number of collectives of one step, without the bytes by which workers compare what they do.

    A compiled subnetwork launches its collectives inside one operator, where only its own engine counts them. In eager
    mode both counts are taken and must agree.
    """
    own = contestant.module.peers if isinstance(contestant.module, SDPModule) else None
    if own is not None:
        own.groups.traffic.reset()
    with counted() as context:
        contestant.step()
    below = context.counter
    if own is None:
        return below.nbytes, len(below.collectives)
    traffic = own.groups.traffic
    control = traffic.sent["control"]
    if variant.compiled:
        return float(traffic.total - control), traffic.calls.total()
    if abs(traffic.total - below.nbytes) > 0.01 * below.nbytes + 1024:  # a few control bytes are not payload
        raise SDPError(
            f"The engine counts {traffic.total:,} bytes sent in a step, c10d's operators count {below.nbytes:,.0f}. "
            "This is a bug; please report it."
        )
    return below.nbytes - control, len(below.collectives)


def _check_seconds(contestant: Contestant) -> float:
    """Returns the processor time that the check of owners has taken so far."""
    own = contestant.module.peers if isinstance(contestant.module, SDPModule) else None
    return 0.0 if own is None else own.groups.traffic.seconds["check"]


def timed(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Returns the seconds per step, from when all ranks start a block of steps until all have finished it."""
    meet(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    meet(device)
    return (time.perf_counter() - started) / steps
