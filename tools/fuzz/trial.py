"""One seed: a module is drawn, written, compiled and compared; if it fails, it is shrunk."""

from __future__ import annotations

import gc
import time
from functools import partial
from pathlib import Path

import torch

from tools.fuzz.comparison import Compile, Verdict, compare, sdp
from tools.fuzz.grammar import Design, draw, write
from tools.fuzz.results import Row
from tools.fuzz.shrinking import shrink


def try_seed(
    seed: int,
    folder: Path,
    wanted: tuple[str, ...] = (),
    alone: bool = False,
    keep: Path | None = None,
    compiler: Compile = sdp.compile,
) -> Row:
    """Draws, writes, compiles and compares one module, and returns its row.

    Args:
        seed: The seed of the module.
        folder: Where sources are written while they run.
        wanted: Names of fragments, one of which the module must have.
        alone: Whether the module has nothing else but a residual branch.
        keep: A folder for the smallest source of a module that is wrong or crashes; None looks for none.
        compiler: What compiles.
    """
    start = time.perf_counter()
    design = draw(seed, wanted, alone)
    verdict = compare(write(design), folder, compiler)
    if verdict.outcome in ("wrong", "crash") and keep is not None:
        judge = partial(_judged, folder=folder, compiler=compiler)
        design, verdict = shrink(design, verdict, judge)
        keep.mkdir(parents=True, exist_ok=True)
        kept = f"# {verdict.outcome} at {verdict.step}: {' '.join(verdict.detail.split())[:300]}\n{write(design)}"
        (keep / f"seed_{seed}_{verdict.outcome}.py").write_text(kept)
    if seed % 20 == 0:
        torch._dynamo.reset()
        gc.collect()
    row = {"seed": seed, **vars(verdict), "fragments": list(design.names)}
    return {**row, "seconds": round(time.perf_counter() - start, 2)}


def _judged(design: Design, folder: Path, compiler: Compile) -> Verdict:
    return compare(write(design), folder, compiler)
