"""The check of packages from the command line; see ``python -m tools.packages --help``."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
from pathlib import Path

from tools.packages.process import Checker
from tools.packages.results import append, read, summary
from tools.packages.trial import FAILURES, PACKAGES, names_of


def main(arguments: list[str] | None = None) -> int:
    """Checks the models that the output file does not hold yet. Returns 1 if one is wrong or crashes, else 0."""
    options = _options(arguments)
    if options.command == "list":
        print("\n".join(_names(options)))
        return 0
    if options.command == "run":
        _run(options)
    rows = read(options.out)
    print(summary(rows))
    return 1 if any(row["outcome"] in FAILURES for row in rows) else 0


def _run(options: argparse.Namespace) -> None:
    done = {row["name"] for row in read(options.out) if not (options.retry and row["outcome"] in FAILURES)}
    settings = {key: getattr(options, key) for key in ("policy", "workers", "rank", "seed")}
    checker = Checker(options.timeout, settings)
    left = [name for name in _names(options) if name not in done]
    try:
        for number, name in enumerate(left[: options.limit], 1):
            row = checker.check(name)
            append(options.out, row)
            detail = "" if row["outcome"] == "exact" else f": {' '.join(row['detail'].split())[:160]}"
            print(f"{number}/{len(left)} {name}: {row['outcome']} ({row['seconds']} s){detail}", flush=True)
    finally:
        checker.close()


def _names(options: argparse.Namespace) -> list[str]:
    """The models of the chosen packages and shard, those that were asked for by name if there are any."""
    lists = []
    for package in options.package or PACKAGES:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            print(f"{package} is not installed: pip install 'sdp-compile[packages]'.", file=sys.stderr)
            continue
        lists.append(names_of(package, options.seed))
    turns = [name for turn in itertools.zip_longest(*lists) for name in turn]  # one of each package in turn
    names = [name for name in turns if name is not None and options.match in name]
    part, _, parts = options.shard.partition("/")
    return names[int(part) :: int(parts)]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.packages", description=__doc__)
    parser.add_argument("command", choices=("run", "list", "table"), nargs="?", default="run")
    parser.add_argument(
        "--package",
        action="append",
        help=f"{', '.join(PACKAGES)}, or a module with names(seed) and build(name); can be repeated",
    )
    parser.add_argument("--match", default="", help="Only models whose names contain this text")
    parser.add_argument("--out", type=Path, default=Path("packages.jsonl"), help="Results; a second run continues them")
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth model, from the Ith, counted from 0")
    parser.add_argument("--limit", type=int, help="Largest number of models to check now")
    parser.add_argument("--timeout", type=float, default=300, help="Seconds for one model")
    parser.add_argument("--retry", action="store_true", help="Check wrong models and crashes again")
    parser.add_argument("--policy", default="auto", help="The policy to plan with")
    parser.add_argument("--workers", type=int, default=4, help="Number of workers to plan for")
    parser.add_argument("--rank", type=int, default=1, help="The worker that is compared with the original")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of weights and of what is drawn from timm")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return options


if __name__ == "__main__":
    sys.exit(main())
