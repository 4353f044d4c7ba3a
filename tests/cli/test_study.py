"""``sdp-compile study``: what it prints, writes and refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdp_compile.cli.main import app
from sdp_compile.study.results import read_rows

ROOT = Path(__file__).parents[2]
STUDY = """
task = "teacher"
steps = 8
batch = 4
seeds = [0, 1]
learning_rates = [0.01]
evaluations = 2
[[contestant]]
name = "dense"
[[contestant]]
name = "tail"
schedule = "backward-tail"
match = ["time", "steps"]
"""


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_that_a_study_runs_prints_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "own.toml", tmp_path / "own.svg"
    file.write_text(STUDY)
    code, out, error = run(file, "--show")
    assert code == 0 and "6 runs are missing" in out
    code, out, error = run(file, "--plot", plot)
    assert code == 0, error
    assert (tmp_path / "own.jsonl").read_text().count("\n") == 6
    assert "tail (equal time, seed 1, 0.01" in error and "0 left" in error
    assert "tail, equal steps" in out and "less dense" in out and "of 2" in out and "missing" not in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert plot.read_text().count("<svg") == 1
    assert "Noise scale at the end of dense training" in out
    code, out, error = run(file, "--report", tmp_path / "own.html")
    assert code == 0 and not error
    page = (tmp_path / "own.html").read_text()
    assert page.count("<svg") == 1 and page.count("<td>tail</td>") == 3 and "70% forward, coverage 0.5" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_that_it_shows_what_each_contestant_tried(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(STUDY.replace("[0.01]", "[0.01, 0.02]"))
    code, out, error = run(file)
    assert code == 0, error
    words = [line.split() for line in out[out.index("Learning rates tried: ") :].splitlines()]
    assert ["contestant", "0.01", "0.02"] in words
    tried = {row[0]: [float(value) for value in row[1:]] for row in words if row and row[0] in ("dense", "tail")}
    assert len(tried) == 2
    rows = read_rows(tmp_path / "own.jsonl")
    for name, values in tried.items():
        tuning = {row["peak"]: row["result"]["loss"] for row in rows if row["tunes"] and row["contestant"] == name}
        assert values == pytest.approx([tuning[0.01], tuning[0.02]], abs=1e-4)
        assert {row["peak"] for row in rows if not row["tunes"] and row["contestant"] == name} == {
            min(tuning, key=lambda peak: tuning[peak])
        }


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        (["absent.toml"], None, ["absent.toml", "no such file"]),
        (["{file}"], ('"teacher"', '"teache"'), ["teache", "Did you mean 'teacher'"]),
        (["{file}"], ("steps = 8", "steps = 0"), ["steps=0 is not valid"]),
        (["{file}", "--plot", "x.pdf"], None, [".png or .svg"]),
        (["{file}", "--out", "/absent/x.jsonl"], None, ["--out", "a folder that exists"]),
    ],
)
def test_that_mistakes_are_one_clean_message(
    options: list[str], change: tuple[str, str] | None, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "own.toml"
    file.write_text(STUDY.replace(*change) if change else STUDY)
    code, _, error = run(*(option.format(file=file) for option in options))
    assert code == 2
    assert all(word in " ".join(error.split()) for word in words), error


def test_that_runs_end_with_the_study(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(STUDY.replace("steps = 8", "steps = 1000000"))
    command = [sys.executable, "-m", "sdp_compile.cli.main", "study", str(tmp_path / "own.toml"), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while len(workers := _running(children)) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(5)  # until their runs have begun
    process.kill()
    process.wait()
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _running(children: Path) -> list[str]:
    """The pool's processes, without that of Python's resource tracker."""
    found = children.read_text().split()
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _lives(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
