"""Runs recipes, and imports their parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.scripts import run_script

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "examples" / "recipes"


def run(recipe: str, *arguments: object, workers: int | None = 2) -> Any:
    """Runs a recipe in the environment that torchrun makes; with None, as a plain script."""
    if workers is not None:
        return run_script(RECIPES / recipe, *map(str, arguments), workers=workers)
    return subprocess.run(
        [sys.executable, str(RECIPES / recipe), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def trained(recipe: str, *arguments: object, workers: int | None = 2) -> str:
    """Runs a recipe that must end well, and returns what it printed."""
    result = run(recipe, *arguments, workers=workers)
    assert result.returncode == 0, result.stderr
    return result.stdout


def part(name: str) -> Any:
    """Imports a module of the recipes, which import each other as scripts do."""
    sys.path.insert(0, str(RECIPES))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(RECIPES))


def logged(folder: Path, *timed: str) -> list[dict[str, float]]:
    """The lines of a run's log, without the figures that depend on the machine."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def forget(folder: Path, step: int) -> None:
    """Takes a run back to the checkpoint before one: as if it had stopped there."""
    (folder / "checkpoints" / f"step-{step:08}").rename(folder / "forgotten")
