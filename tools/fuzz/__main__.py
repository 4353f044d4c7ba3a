"""The fuzzer from the command line; see ``python -m tools.fuzz --help``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from tools.fuzz.comparison import compare
from tools.fuzz.fragments import FRAGMENTS
from tools.fuzz.grammar import draw, write
from tools.fuzz.results import Results, Row, failures, summary
from tools.fuzz.trial import try_seed


def main(arguments: list[str] | None = None) -> int:
    """Tries the modules that the output file does not hold yet. Returns 1 if the package fails with one, else 0."""
    options = _options(arguments)
    if options.file is not None or options.only is not None:
        return _one(options)
    results = Results(options.out)
    seeds = [seed for seed in range(options.seed, options.seed + options.modules) if seed not in results.done]
    start, busy = time.perf_counter(), time.process_time()
    for row in _rows(seeds, options, results):
        results.add(row)
        if row["outcome"] not in ("exact", "refused"):
            print(f"seed {row['seed']}: {row['outcome']} at {row['step']}: {row['detail'][:200]}", flush=True)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(summary(results.rows))
    rate = len(seeds) / max(seconds, 1e-9)
    print(f"{len(seeds)} modules in {seconds:.0f} s, {rate:.2f} per second; {busy:.0f} s of this process's time.")
    return 1 if failures(results.rows) else 0


def _rows(seeds: Iterable[int], options: argparse.Namespace, results: Results) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        trial = partial(
            try_seed, folder=Path(name), wanted=tuple(options.fragment), alone=options.alone, keep=options.keep
        )
        if options.jobs == 1:
            for seed in seeds:
                results.start(seed)
                yield trial(seed)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
            for done in as_completed([pool.submit(trial, seed) for seed in seeds]):
                yield done.result()


def _one(options: argparse.Namespace) -> int:
    """Prints and tries one module."""
    source = (
        options.file.read_text() if options.file else write(draw(options.only, tuple(options.fragment), options.alone))
    )
    with tempfile.TemporaryDirectory() as name:
        print(source)
        verdict = compare(source, Path(name))
        print("\n".join(f"# {key}: {value}" for key, value in vars(verdict).items()))
        if options.keep is not None and options.only is not None:
            try_seed(options.only, Path(name), tuple(options.fragment), options.alone, options.keep)
    return 1 if verdict.is_failure else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Random modules against their originals.")
    parser.add_argument("--modules", type=int, default=200, help="Number of modules")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the first module; the others follow")
    parser.add_argument("--only", type=int, help="Prints and tries the module of this seed")
    parser.add_argument(
        "--file", type=Path, help="Tries the module of this file, which has build() and may have variants()"
    )
    parser.add_argument(
        "--fragment",
        action="append",
        default=[],
        choices=sorted(FRAGMENTS),
        metavar="NAME",
        help="A fragment of which each module has one; can be repeated",
    )
    parser.add_argument(
        "--alone", action="store_true", help="Modules of one fragment, of each in turn, and a residual branch"
    )
    parser.add_argument("--out", type=Path, help="Results, one JSON object per line; a second run continues it")
    parser.add_argument("--keep", type=Path, help="Folder for the smallest source of each wrong or crashing module")
    parser.add_argument("--jobs", type=int, default=1, help="Number of processes")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    return options


if __name__ == "__main__":
    sys.exit(main())
