"""The command ``python -m tools.kills``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.kills.campaign import Campaign
from tools.kills.trial import KINDS


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 if something was accepted corrupt, got lost, or hung."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.kills", description="Kills, stops and starves workers that train and save."
    )
    parser.add_argument("--kills", type=int, default=1000, help="Number of faults, those in the file included")
    parser.add_argument("--seed", type=int, default=0, help="The first trial's seed; the others follow")
    parser.add_argument("--only", type=int, help="Try this seed alone, and print all that happened")
    parser.add_argument("--timeout", type=float, default=8.0, help="Limit of a collective in seconds")
    parser.add_argument("--patience", type=float, default=1.0, help="Factor of the limit of a run, on a busy machine")
    parser.add_argument("--kind", action="append", choices=list(map(str, KINDS)), help="Train only this; repeatable")
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"), help="Results, one JSON object per line")
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if not options.kind or str(kind) in options.kind]
    alone = options.only is not None
    rows = [] if alone else [row for row in read(options.out) if row["seed"] >= options.seed]
    done = {row["seed"] for row in rows}
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        campaign: Campaign | None = None
        for seed in [options.only] if alone else (seed for seed in count(options.seed) if seed not in done):
            if not alone and faults(rows) >= options.kills:
                break
            campaign = campaign or Campaign(Path(name), options.timeout, options.patience, kinds)
            row = campaign.run(seed)
            rows.append(row)
            if not alone:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(json.dumps(row) if row["problem"] or alone else _line(row), flush=True)
    Console(width=100).print(table(rows))
    wrong = [row["seed"] for row in rows if row["problem"]]
    seeds = f": seeds {wrong}" if wrong else ""
    print(f"{faults(rows)} faults in {len(rows)} trials, {len(wrong)} with a problem{seeds}.")
    return int(bool(wrong))


def faults(rows: list[dict[str, Any]]) -> int:
    """Returns in how many trials the fault came before the workers had ended."""
    return sum(row["hit"] != "nothing" for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; a last line that was not written to its end does not count."""
    if not path.exists():
        return []
    text = path.read_text()
    whole, _, _ = text.rpartition("\n")
    if not text.endswith("\n"):
        os.truncate(path, len(f"{whole}\n".encode()) if whole else 0)
    return [json.loads(line) for line in whole.splitlines()]


def table(rows: list[dict[str, Any]]) -> Table:
    """Returns the number of trials by fault, by what it hit, and by what became of them."""
    result = Table("fault", "trials", "hit a save", "hit training", "resumed", "assembled", "began", "wrong", "seconds")
    for fault in [*dict.fromkeys(row["fault"] for row in rows), "all"]:
        some = [row for row in rows if fault in (row["fault"], "all")]
        hits, ends = Counter(row["hit"] for row in some), Counter(row["result"] for row in some)
        seconds = sum(row["seconds"] for row in some) / max(len(some), 1)
        result.add_row(
            fault,
            *map(str, (len(some), hits["save"], hits["training"], ends["resumed"], ends["assembled and resumed"])),
            *map(str, (ends["began again"], ends["wrong"], f"{seconds:.1f}")),
        )
    return result


def _line(row: dict[str, Any]) -> str:
    return f"{row['seed']}: {row['fault']} in {row['hit']}: {row['result']} ({row['seconds']} s)"


if __name__ == "__main__":
    sys.exit(main())
