"""Shell completion, in a real bash, without torch and at once; help with examples; progress; errors for people."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.cli.main import app
from sdp_compile.errors import PolicyError
from sdp_compile.progress import stages
from tests.cli.test_main import ROOT, WITHOUT_TORCH

pytestmark = pytest.mark.timeout(120)

# What bash does on a press of Tab after each line of standard input.
TAB = """
source <(sdp-compile --show-completion bash)
while IFS= read -r line; do
    read -ra COMP_WORDS <<<"$line"
    [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _sdp_compile_completion sdp-compile
    echo "${COMPREPLY[@]}"
done
"""


@pytest.fixture
def completed(tmp_path: Path):
    """Completes command lines in bash, in a folder with a few files."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "sdp-compile"
    command.write_text(f"#!{sys.executable}\n{WITHOUT_TORCH}")
    command.chmod(0o755)
    work = tmp_path / "work"
    (work / "configs").mkdir(parents=True)
    for name in ("model.py", "policy.toml", "notes.txt"):
        (work / name).touch()
    environment = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # a test's parent process is no shell
    }

    def complete(*lines: str) -> list[set[str]]:
        result = subprocess.run(
            ["bash", "-c", TAB],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            cwd=work,
            env=environment,
        )
        assert "torch was imported" not in result.stderr
        return [set(line.split()) for line in result.stdout.splitlines()]

    return complete


def test_tab_completes_commands_options_models_and_policies(completed) -> None:
    commands, option, model, policy, level = completed(
        "sdp-compile ",
        "sdp-compile check --cov",
        "sdp-compile check ",
        "sdp-compile report x --policy ",
        "sdp-compile train --level b",
    )
    assert {"train", "check", "report", "doctor"} <= commands
    assert option == {"--coverage"}
    assert model == {"torchvision:", "timm:", "transformers:", "configs/", "model.py:"}
    assert policy == {"neuron", "block", "auto", "configs/", "policy.toml"}
    assert level == {"block"}


def test_every_command_shows_examples_and_exit_codes() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"train", "check", "report", "doctor"} <= set(names)
    for arguments in ([], *([name] for name in names)):
        help_text = CliRunner().invoke(app, [*arguments, "--help"]).stdout
        assert "Examples" in help_text, arguments
        assert "Exit codes" in help_text, arguments
        assert " ".join(["sdp-compile", *arguments]) in help_text


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PolicyError("policy field 'x[red]': no"), 2, "policy field 'x[red]': no"),
        (KeyError("layers\n.3"), 1, "unexpected KeyError: 'layers\\n.3'"),
        (KeyboardInterrupt(), 130, "Stopped"),
    ],
)
def test_tracebacks_are_shown_on_request_only(
    error: BaseException, code: int, words: str, debug: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, clean_errors(debug):
        raise error
    shown = capfd.readouterr().err
    assert caught.value.exit_code == code
    assert words in shown
    assert ("Traceback" in shown) == (debug and code != 130)


def test_progress_is_for_terminals_only(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def go() -> str:
        with stages(2) as begin:
            begin("capturing [red]model")
            begin("analysing")
        return "".join(capfd.readouterr())

    assert go() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes a terminal of any output
    shown = go()
    assert "analysing" in shown and "1/2" in shown
