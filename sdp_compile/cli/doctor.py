"""``sdp-compile doctor``: what this machine has, what training would use, what is missing. Does not import torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdp_compile._version import __version__
from sdp_compile.cli.doctor_packages import OPTIONAL, REQUIRED, TORCH
from sdp_compile.command_words import DEFAULT_WORKERS

PROBE_SECONDS = 120  # importing torch from a cold network disk takes a minute
COMPILER_SECONDS = 30

# What the code that torch.compile generates for the CPU includes.
_PROGRAM = "#include <Python.h>\n#include <omp.h>\n#include <vector>\nint main() { return omp_get_max_threads(); }\n"


def examine() -> dict[str, Any]:
    """Returns all facts and findings as plain data, as ``--json`` prints them. Missing parts raise nothing."""
    facts: dict[str, Any] = {
        "sdp_compile": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {"platform": platform.platform(), "cores": _cores(), "memory_bytes": _memory()},
        "torch": _torch(),
        "compiler": _compiler(),
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
    }
    facts["training"] = _training(facts)
    facts["findings"] = [{"severity": severity, "text": text} for severity, text in _findings(facts)]
    facts["ready"] = all(finding["severity"] != "error" for finding in facts["findings"])
    return facts


def run(as_json: bool) -> int:
    """Prints the findings. Returns 0 where this machine can train, 1 where training lacks something."""
    from rich.console import Console

    from sdp_compile.cli.doctor_report import render
    from sdp_compile.progress import stages

    with stages(1) as begin:
        begin("looking at this machine")
        facts = examine()
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        Console().print(render(facts))
    return 0 if facts["ready"] else 1


def _torch() -> dict[str, Any]:
    """Returns the installed version and the probe's findings, or an ``error`` that says why it has none."""
    installed = _version("torch")
    if installed is None:
        return {"version": None, "error": "torch is not installed"}
    if not _is_supported(installed):
        return {"version": installed, "error": f"torch {installed} is older than {'.'.join(map(str, TORCH))}"}
    environment = {**os.environ}
    if os.name == "posix":  # as for the workers of `train`: the host's name need not resolve
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    command = [sys.executable, "-m", "sdp_compile.cli.doctor_probe"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"version": installed, "error": f"torch did not answer in {PROBE_SECONDS} s; does a driver hang?"}
    try:
        return {**json.loads(result.stdout.strip().rpartition("\n")[2]), "error": None}
    except ValueError:
        last = result.stderr.strip().rpartition("\n")[2] or f"exit code {result.returncode}"
        return {"version": installed, "error": f"torch cannot be used: {last}"}


def _is_supported(installed: str) -> bool:
    numbers = [int(part) for part in installed.split("+")[0].split(".")[:2] if part.isdigit()]
    return tuple(numbers) >= TORCH


def _compiler() -> dict[str, Any]:
    """Tries the C++ compiler that torch.compile would call for the CPU on a program of a few lines."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        return {"path": None, "error": f"there is no {' or '.join(names)}"}
    include = sysconfig.get_path("include")
    command = [path, "-fopenmp", "-fsyntax-only", f"-I{include}", "-x", "c++", "-"]
    try:
        result = subprocess.run(command, input=_PROGRAM, capture_output=True, text=True, timeout=COMPILER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"path": path, "error": str(error)}
    errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
    return {"path": path, "error": None if result.returncode == 0 else (errors or ["it fails without a message"])[0]}


def _training(facts: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what ``sdp-compile train`` would use here; None where it cannot run."""
    torch = facts["torch"]
    if torch["error"] or not torch["backends"]:
        return None
    devices = torch["devices"]
    on_accelerators = len(devices) >= DEFAULT_WORKERS  # one per worker, or none is used
    return {
        "workers": DEFAULT_WORKERS,
        "device": devices[0]["type"] if on_accelerators else "cpu",
        "backend": devices[0]["backend"] if on_accelerators else "gloo",
        "threads_per_worker": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _findings(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (severity, text): errors stop training, warnings and notes do not."""
    torch, training, cores = facts["torch"], facts["training"], facts["system"]["cores"]
    missing = [name for name in REQUIRED if facts["packages"][name] is None]
    if missing:
        yield "error", f"{', '.join(missing)} missing: pip install --upgrade --force-reinstall sdp-compile"
    if torch["error"]:
        yield "error", f"{torch['error']}: install it as pytorch.org/get-started says."
    elif torch["gloo_error"]:
        advice = "bring a network interface up, or name one in GLOO_SOCKET_IFNAME."
        yield "error", f"A Gloo process group cannot be made ({torch['gloo_error']}): {advice}"
    if training and training["device"] == "cpu" and training["workers"] > cores:
        yield "note", f"{training['workers']} workers share {cores} cores: correct, but slower than one core each."
    if training and torch["devices"] and training["device"] == "cpu":
        advice = f"`sdp-compile train --workers {len(torch['devices'])}` uses the ones found here."
        yield "note", f"Each worker needs an accelerator of its own: {advice}"
    if facts["compiler"]["error"]:
        advice = "install a C++ compiler with OpenMP and Python's headers, such as apt-get install g++ python3-dev."
        yield "warning", f"torch.compile cannot generate code for the CPU ({facts['compiler']['error']}): {advice}"
    absent = [name for name in OPTIONAL if facts["packages"][name] is None]
    if absent:
        yield "note", f"{', '.join(absent)} not installed; needed only for their models: pip install 'sdp-compile[zoo]'"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    """Returns the cores that this process may use; under taskset or in a container fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    """Returns the bytes of memory that this process may use: the machine's, or its container's limit."""
    known = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            known.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(known, default=None)
