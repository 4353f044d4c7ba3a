"""The command ``python -m tools.fuzz_files``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tools.fuzz_files.guard import limit_memory
from tools.fuzz_files.readers import Readers

SPARE_BYTES = 2 * 2**30
"""How much memory reading one input may take, at most."""


def run(kind: str, readers: Readers, count: int, start: int) -> tuple[Counter[str], str]:
    """Reads inputs of one kind.

    Args:
        kind: The kind.
        readers: Their readers.
        count: The number of inputs.
        start: The seed.

    Returns:
        How many were read and refused, and the traceback of the smallest that was neither.
    """
    outcomes: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(readers.kinds[kind][0])
    def one(value: Any) -> None:
        outcomes[readers.read(kind, value)] += 1

    try:
        one()
    except Exception:
        return outcomes, traceback.format_exc()
    return outcomes, ""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 if an input was neither read nor refused."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz_files", description="Hostile files and command lines.")
    parser.add_argument("--inputs", type=int, default=100_000, help="Number of inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="Seed")
    parser.add_argument("--kind", action="append", default=[], help="Only this kind; can be repeated")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failures = total = 0
    with tempfile.TemporaryDirectory() as name:
        readers = Readers(Path(name))
        readers.prepare()
        limit_memory(SPARE_BYTES)
        kinds = options.kind or list(readers.kinds)
        for kind in kinds:
            start = time.perf_counter()
            outcomes, problem = run(kind, readers, -(-options.inputs // len(kinds)), options.seed)
            count = sum(outcomes.values())
            total += count
            figures = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
            print(f"{kind}: {count} inputs in {time.perf_counter() - start:.0f} s: {figures}", flush=True)
            if problem:
                failures += 1
                print(problem, flush=True)
    print(f"{total} inputs, {failures} kinds with a failure.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
