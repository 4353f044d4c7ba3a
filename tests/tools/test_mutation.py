"""The mutation tool on a toy project: what a test guards is killed, what no test guards or reaches survives."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from tools.mutation.mutants import find_mutants

ROOT = Path(__file__).parents[2]
SOURCE = """
def grow(x: int, limit: int = 9) -> int:
    if x < 0:
        raise ValueError(f"x must not be negative, got {x - 0}")
    return x + 2


def unguarded(x):
    return not x


def unreached(x):
    return 17 * x
"""
TESTS = """
import pytest
from toy.parts import grow, unguarded

def test_grow():
    assert grow(5) == 7
    assert grow(0) == 2
    with pytest.raises(ValueError):
        grow(-1)

def test_unguarded():
    unguarded(3)
"""


def test_mutants_differ_in_one_place_and_leave_texts_and_types_alone() -> None:
    source = SOURCE.encode()
    mutants = find_mutants("toy/parts.py", source)
    assert [(mutant.before, mutant.after) for mutant in mutants] == [
        ("9", "10"),
        ("x < 0", "(x <= 0)"),
        ("0", "1"),
        ('raise ValueError(f"x must not be negative, got {x - 0}")', "pass"),
        ("return x + 2", "return None"),
        ("x + 2", "(x - 2)"),
        ("2", "3"),
        ("return not x", "return None"),
        ("not x", "(x)"),
        ("return 17 * x", "return None"),
        ("17", "18"),
        ("17 * x", "(17 // x)"),
    ]
    for mutant in mutants:
        changed = mutant.apply(source)
        assert len(changed) - len(source) == len(mutant.after) - len(mutant.before)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def test_a_guarded_line_is_killed_and_an_unguarded_one_survives(tmp_path: Path) -> None:
    (tmp_path / "project/toy").mkdir(parents=True)
    (tmp_path / "project/tests").mkdir()
    (tmp_path / "project/toy/parts.py").write_text(SOURCE)
    (tmp_path / "project/tests/test_parts.py").write_text(TESTS)
    out = tmp_path / "out.jsonl"
    options = ["--root", tmp_path / "project", "--part", "toy=tests", "--sample", "100", "--seed", "3", "--out", out]
    command = [sys.executable, "-m", "tools.mutation", *map(str, options)]
    summary = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    results = [json.loads(line) for line in out.read_text().splitlines()]
    killed = {result["before"]: result["killed_by"] for result in results}
    assert killed == {
        **dict.fromkeys(["x < 0", "0", "return x + 2", "x + 2", "2"], "tests/test_parts.py::test_grow"),
        'raise ValueError(f"x must not be negative, got {x - 0}")': "tests/test_parts.py::test_grow",
        "9": None,
        "return not x": None,
        "not x": None,
        **dict.fromkeys(["return 17 * x", "17", "17 * x"], None),
    }
    assert "Seed 3: 12 mutants, 6 killed, 6 survived." in summary
    assert (tmp_path / "project/toy/parts.py").read_text() == SOURCE
    # What the file holds already is not tried again.
    again = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert again == summary[summary.index("Seed") :]
