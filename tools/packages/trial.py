"""Builds one model of a package and checks it."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import time
from collections.abc import Mapping
from typing import Any, Literal

PACKAGES: Mapping[str, str] = {
    "timm": "tools.packages.of_timm",
    "transformers": "tools.packages.of_transformers",
    "vit-pytorch": "tools.packages.of_vit_pytorch",
    "x-transformers": "tools.packages.of_x_transformers",
    "segmentation-models-pytorch": "tools.packages.of_segmentation",
}
"""The module that lists and builds the models of a package, by ``names(seed)`` and ``build(name)``."""

Outcome = Literal["exact", "refused", "unverified", "wrong", "crash", "cannot build"]

FAILURES: tuple[Outcome, ...] = ("wrong", "crash")

_OUTCOMES: Mapping[str, Outcome] = {
    "exact": "exact",
    "refused": "refused",
    "unverified": "unverified",
    "not exact": "wrong",
    "failed": "crash",
}

Row = dict[str, Any]
"""``name``, ``outcome``, ``detail``, ``stage``, ``kept``, ``parameters``, ``seconds`` (of the CPU) and ``versions``."""

_BEFORE_PACKAGES = re.compile(r"[^\s'\"]*site-packages/")


def names_of(package: str, seed: int) -> list[str]:
    """Returns ``PACKAGE:NAME`` for each model of a package."""
    return [f"{package}:{name}" for name in _module(package).names(seed)]


def check_model(name: str, policy: str, workers: int, rank: int, seed: int) -> Row:
    """Builds and checks ``PACKAGE:NAME``.

    Args:
        name: The model.
        policy: The policy to plan with.
        workers: Number of workers to plan for.
        rank: The worker that is compared with the original.
        seed: Random seed for the weights.
    """
    import torch

    import sdp_compile as sdp

    start = time.process_time()
    package, _, own = name.partition(":")
    torch.manual_seed(seed)
    try:
        model, inputs = _module(package).build(own)
        with torch.no_grad():
            model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return row(name, "cannot build", f"{type(error).__name__}: {lines[0][:300]}", time.process_time() - start)
    result = sdp.check(model, policy, inputs, workers=workers, ranks=(rank,), seed=seed)
    found = row(name, _OUTCOMES[result.verdict], result.reason, time.process_time() - start)
    kept = result.kept[0] if result.kept else None
    found |= {"stage": result.stage, "kept": kept, "parameters": result.parameters}
    return found if result.verdict != "failed" else {**found, "trace": result.details.splitlines()[-12:]}


def row(name: str, outcome: Outcome, detail: str, seconds: float) -> Row:
    """Returns a row without the fields that only a check has."""
    base = {"name": name, "outcome": outcome, "detail": _BEFORE_PACKAGES.sub("", detail), "stage": ""}
    return {**base, "kept": None, "parameters": None, "seconds": round(seconds, 1), "versions": _versions(name)}


def _versions(name: str) -> str:
    packages = [one for one in (name.partition(":")[0], "torch") if one in (*PACKAGES, "torch")]
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def _module(package: str) -> Any:
    return importlib.import_module(PACKAGES.get(package, package))
