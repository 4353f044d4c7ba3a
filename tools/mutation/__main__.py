"""Mutation testing from the command line; see ``python -m tools.mutation --help``."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.in_place import Changes, changed_functions, install
from tools.mutation.mutants import Mutant, find_mutants
from tools.mutation.tests import EVERY_LINE, Result, first_failures, in_fork, python_files, record

PARTS = [
    "sdp_compile/structure=tests/structure",
    "sdp_compile/passes=tests/passes",
    "sdp_compile/runtime/gradients=tests/runtime/gradients",
]
RUN_LIMIT = 36000.0
"""Seconds for all tests of a part, or all mutants."""


@dataclass(frozen=True)
class Part:
    """A folder of sources and the tests that must fail when it is broken."""

    source: str
    tests: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Part:
        """Returns the part of ``SOURCE=TESTS[,TESTS...]``."""
        source, _, tests = text.partition("=")
        if not source or not tests:
            raise argparse.ArgumentTypeError(f"Write SOURCE=TESTS[,TESTS...], got {text!r}.")
        return Part(source, tuple(tests.split(",")))


def sample(root: Path, parts: list[Part], count: int, seed: int) -> Iterator[tuple[Part, list[Mutant]]]:
    """Draws mutants from each part in proportion to its lines, in a random order."""
    chance = random.Random(seed)
    sources = [{str(f.relative_to(root)): f.read_bytes() for f in python_files(root, part.source)} for part in parts]
    lines = [sum(text.count(b"\n") for text in files.values()) for files in sources]
    for part, files, own in zip(parts, sources, lines, strict=True):
        mutants = [mutant for file, text in files.items() for mutant in find_mutants(file, text)]
        yield part, chance.sample(mutants, min(len(mutants), -(-count * own // sum(lines))))


def coverage(part: Part, root: Path, copy: Path, out: Path) -> Result:
    """Returns what the tests of a part execute; a second run with the same files reads it from beside ``out``."""
    sources = [str(file.relative_to(root)) for file in python_files(root, part.source)]
    tests = [str(file.relative_to(root)) for place in part.tests for file in python_files(root, place)]
    digest = hashlib.sha256(b"\0".join((root / file).read_bytes() for file in sources + tests)).hexdigest()[:12]
    kept = out.with_suffix(f".{digest}.coverage.json")
    if not kept.exists():
        journal = kept.with_suffix(".journal")
        found = in_fork(copy, out.with_suffix(".log"), RUN_LIMIT, lambda: record(copy, sources, part.tests, journal))
        journal.unlink(missing_ok=True)
        if not found or not found["durations"]:
            raise SystemExit(f"The tests of {part.source} did not run; see {out.with_suffix('.log')}.")
        kept.write_text(json.dumps(found))
    result: Result = json.loads(kept.read_text())
    return result


def tests_of(mutant: Mutant, covered: Result, in_functions: bool) -> dict[str, float]:
    """Returns the durations of the tests that execute the mutated lines; of all tests where only imports do."""
    places = {EVERY_LINE, *(f"{mutant.file}:{line}" for line in range(mutant.first, mutant.last + 1))}
    names = [name for name, lines in covered["lines"].items() if not places.isdisjoint(lines)]
    if not in_functions and (runs_at_import(mutant, covered) or not names):
        names = list(covered["lines"])
    return {name: covered["durations"][name] for name in names}


def runs_at_import(mutant: Mutant, covered: Result) -> bool:
    """Returns whether importing the package executes the mutated lines."""
    return any(f"{mutant.file}:{line}" in covered["imported"] for line in range(mutant.first, mutant.last + 1))


@dataclass
class MutantTrial:
    """One mutant in a copy of the project.

    Attributes:
        mutant: The change.
        durations: Seconds of each test that executes it.
        copy: Folder of the copy.
        out: File to which the result is added.
        changes: The functions that differ; None where code that runs at import does.
    """

    mutant: Mutant
    durations: Mapping[str, float]
    copy: Path
    out: Path
    changes: Changes | None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Breaks the file for processes that import it."""
        self.start = time.monotonic()
        file = self.copy / self.mutant.file
        original = file.read_bytes()
        # A kept bytecode file would be taken for that of another source of the same size and second.
        for stale in file.parent.glob(f"__pycache__/{file.stem}.*"):
            stale.unlink()
        file.write_bytes(self.mutant.apply(original))
        try:
            yield
        finally:
            file.write_bytes(original)

    def install(self) -> None:
        """Breaks the functions that are imported already."""
        install(self.changes or {})

    def report(self, found: Result) -> None:
        """Adds the result to the file."""
        mutant = self.mutant
        place = {"file": mutant.file, "line": mutant.line, "column": mutant.column}
        result = {**place, "before": mutant.before, "after": mutant.after, **found}
        with self.out.open("a") as file:
            file.write(json.dumps({**result, "seconds": round(time.monotonic() - self.start, 1)}) + "\n")
        print(f"{mutant.file}:{mutant.line}: {found['killed_by'] or 'SURVIVED'}", flush=True)


def try_all(part: Part, mutants: list[Mutant], covered: Result, copy: Path, out: Path, budget: float) -> None:
    """Tries mutants of functions in forks of one process that has imported all, the others in one process each."""
    trials = []
    for mutant in mutants:
        source = (copy / mutant.file).read_bytes()
        changes = None if runs_at_import(mutant, covered) else changed_functions(source, mutant.apply(source))
        trials.append(MutantTrial(mutant, tests_of(mutant, covered, changes is not None), copy, out, changes))
    log, inner = out.with_suffix(".log"), out.with_suffix(".mutant.log")
    together = [trial for trial in trials if trial.changes is not None]
    in_fork(copy, log, RUN_LIMIT, lambda: first_failures(copy, part.tests, together, inner, budget))
    for trial in trials:
        if trial.changes is None:
            with trial.in_place():
                in_fork(copy, log, RUN_LIMIT, lambda: first_failures(copy, part.tests, [trial], inner, budget))  # noqa: B023


def identity(result: Result) -> tuple[object, ...]:
    """What tells a mutant from all others."""
    return tuple(result[key] for key in ("file", "line", "column", "before", "after"))


def main() -> None:
    """Tries all mutants of the sample that the output file does not hold yet, and prints a summary."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutation", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="Folder of the project")
    parser.add_argument(
        "--part", type=Part.parse, action="append", help="SOURCE=TESTS[,TESTS...], can be repeated; default: PARTS"
    )
    parser.add_argument("--sample", type=int, default=300, help="Number of mutants, shared by the lines of the parts")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the sample")
    parser.add_argument(
        "--budget", type=float, default=60, help="Seconds per mutant; what is left then counts as alive"
    )
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"), help="Results, one JSON object per line")
    parser.add_argument("--retry", action="store_true", help="Try the survivors in the output file again")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root, out = options.root.resolve(), options.out.resolve()
    parts = options.part or [Part.parse(text) for text in PARTS]
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if options.retry:
        done = [result for result in done if result["killed_by"]]
        out.write_text("".join(json.dumps(result) + "\n" for result in done))
    tried = {identity(result) for result in done}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "project"
        shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache"))
        drawn = [
            (part, [mutant for mutant in mutants if identity(vars(mutant)) not in tried], len(mutants))
            for part, mutants in sample(root, parts, options.sample, options.seed)
        ]
        # First the parts of which the least was tried: a run that is cut short then says something about each.
        for part, left, _ in sorted(drawn, key=lambda entry: -len(entry[1]) / max(entry[2], 1)):
            if not left:
                continue
            importlib.import_module("torch")
            covered = coverage(part, root, copy, out)
            for name in covered["modules"]:
                # Its import would start threads, which a fork does not have.
                if not name.startswith(("torch._inductor", "__m")):
                    try:
                        importlib.import_module(name)
                    except Exception as problem:
                        print(f"{name} is imported by each mutant: {problem}")
            try_all(part, left, covered, copy, out, options.budget)
    done = [json.loads(line) for line in out.read_text().splitlines()]
    alive = [result for result in done if not result["killed_by"]]
    print(f"Seed {options.seed}: {len(done)} mutants, {len(done) - len(alive)} killed, {len(alive)} survived.")
    for result in alive:
        print(f"{result['file']}:{result['line']}: {result['before']!r} -> {result['after']!r}")


if __name__ == "__main__":
    main()
