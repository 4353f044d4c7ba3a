"""The command line's own manners: quick answers without torch, clean refusals, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdp_compile

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]

# Runs the command line, and fails if that has imported torch.
WITHOUT_TORCH = """
import sys
from sdp_compile.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


def command(*arguments: str, code: str = WITHOUT_TORCH, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_version_is_the_packages() -> None:
    result = command("--version")
    assert (result.returncode, result.stdout) == (0, f"sdp-compile {sdp_compile.__version__}\n"), result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["bench", "--help"], ["simulate", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert "torch was imported" not in result.stderr
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--coverage", "0"], ["coverage=0", "(0, 1]"]),
        (["--coverage", "1.5"], ["coverage=1.5", "(0, 1]"]),
        (["--coverage", "nan"], ["coverage=nan", "(0, 1]"]),
        (["--workers", "0"], ["--workers"]),
        (["--steps", "-1"], ["--steps"]),
        (["--level", "sideways"], ["--level", "neuron", "block", "auto"]),
        (["--policy", "missing.toml"], ["missing.toml", "no such file"]),
        (["--policy", "block", "--level", "neuron"], ["exclude each other"]),
        (["--policy", "newron"], ["newron", "neuron", "block", "auto"]),
        (["--unknown"], ["--unknown"]),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = command("train", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option in (
        ["--output", f"{tmp_path}/file/x"],
        ["--output", str(tmp_path), "--json", f"{tmp_path}/file/x.json"],
    ):
        result = command("train", *option, code="from sdp_compile.cli.main import main; main()")
        assert result.returncode == 2
        assert f"{tmp_path}/file" in result.stderr
        assert "Traceback" not in result.stderr
