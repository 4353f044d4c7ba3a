"""``--passes``: a user's own pass by name and from a file, shown, checked and refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdp_compile.cli.main import app
from sdp_compile.ir.program import Program
from sdp_compile.passes import Pass, PassContext, register_pass
from sdp_compile.passes.pipelines import PASSES
from tests.cli.test_main import command

pytestmark = pytest.mark.timeout(240)

MODEL = "tests/bench/models.py:residual"


@pytest.fixture(autouse=True)
def own_pass() -> Iterator[None]:
    """A pass that leaves the program as it is."""

    @dataclass(frozen=True)
    class Idle(Pass):
        def run(self, program: Program, context: PassContext) -> Program:
            return program

    register_pass("idle")(Idle)
    yield
    PASSES._registered.pop("idle")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_inspect_shows_it_and_what_it_changes() -> None:
    code, out, error = run("inspect", "diff", MODEL, "--passes", "idle")
    assert code == 0 and "idle" in out, error
    code, out, error = run("inspect", "diff", MODEL, "--passes", "idle", "--pass", "idle")
    assert code == 0, error
    code, _, error = run("inspect", "diff", MODEL, "--pass", "idle")
    assert code == 2 and "idle" in error


def test_check_runs_it() -> None:
    code, out, error = run("check", MODEL, "--passes", "idle", "--rank", "0", "--policy", "neuron")
    assert code == 0 and "exact" in out, error


def test_a_file_and_the_page_that_shows_it(tmp_path: Path) -> None:
    file, page = tmp_path / "passes.toml", tmp_path / "page.html"
    file.write_text('add = ["idle"]\n')
    code, _, error = run("report", MODEL, "--passes", str(file), "-o", str(page))
    assert code == 0, error
    assert "idle" in page.read_text() and f"--passes {file}" in page.read_text()


@pytest.mark.parametrize("name", ["inspect cost", "inspect diff", "report", "check", "train"])
def test_a_file_that_does_not_exist_is_refused_without_torch(name: str) -> None:
    model = [] if name == "train" else ["a:b"]
    result = command(*name.split(), *model, "--passes", "missing.toml")
    assert result.returncode == 2, result.stderr
    assert "--passes missing.toml" in result.stderr or "--passes" in result.stderr
    assert "torch was imported" not in result.stderr and "Traceback" not in result.stderr


def test_an_unknown_pass_is_named() -> None:
    code, _, error = run("inspect", "diff", MODEL, "--passes", "idel")
    assert code == 2 and "idel" in error and "idle" in error
