"""``sdp-compile doctor``: the machine's facts against torch's and Python's own, and a word for whatever is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdp_compile.cli import doctor
from sdp_compile.cli.main import app
from tests.cli.test_main import ROOT, command

pytestmark = pytest.mark.timeout(120)


def facts(*, code: int) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that is imported in torch's stead by the Python that the doctor starts."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return tmp_path / "torch.py"


def test_facts_are_those_of_torch_and_the_system() -> None:
    result = command("doctor", "--json")
    assert result.returncode == 0, result.stderr
    assert "torch was imported" not in result.stderr
    found = json.loads(result.stdout)
    import torch
    import torch.distributed as dist

    assert found["torch"]["version"] == torch.__version__
    assert len(found["torch"]["devices"]) == torch.accelerator.device_count()
    assert found["torch"]["backends"]["nccl"] == dist.is_nccl_available()
    assert found["torch"]["gloo_error"] == ""
    assert found["system"]["cores"] == len(os.sched_getaffinity(0))
    assert found["python"]["executable"] == sys.executable
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert found["training"]["workers"] == 4
    assert found["ready"]


def test_a_broken_torch_is_named_and_the_machine_not_ready(fake_torch: Path) -> None:
    fake_torch.write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = facts(code=1)
    assert not found["ready"]
    assert found["training"] is None
    (error,) = (one["text"] for one in found["findings"] if one["severity"] == "error")
    assert "libcudart.so.13" in error
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "libcudart.so.13" in result.output and "not ready" in result.output


def test_a_torch_that_hangs_or_crashes_does_not_stop_the_doctor(
    fake_torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch.write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 1)
    assert "did not answer in 1 s" in facts(code=1)["torch"]["error"]
    fake_torch.write_text("import os; os.abort()")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 60)
    assert "exit code -6" in facts(code=1)["torch"]["error"]


def test_an_old_or_absent_torch_is_told_without_importing_it(fake_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, str] = {"torch": "2.4.1+cpu"}

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    fake_torch.write_text("raise SystemExit('imported')")
    monkeypatch.setattr(doctor, "version", version)
    found = facts(code=1)
    assert found["torch"]["error"] == "torch 2.4.1+cpu is older than 2.11"
    assert any("numpy" in one["text"] and one["severity"] == "error" for one in found["findings"])
    assert any("sdp-compile[zoo]" in one["text"] and one["severity"] == "note" for one in found["findings"])
    installed.clear()
    assert facts(code=1)["torch"] == {"version": None, "error": "torch is not installed"}


def test_a_missing_compiler_is_a_warning_only(fake_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch.write_text("raise ImportError")  # the compiler does not need it, and this is quicker
    monkeypatch.setenv("PATH", str(fake_torch.parent))
    monkeypatch.delenv("CXX", raising=False)
    (warning,) = (one["text"] for one in facts(code=1)["findings"] if one["severity"] == "warning")
    assert "torch.compile" in warning and "there is no g++ or clang++" in warning
    compiler = fake_torch.with_name("g++")
    compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    (warning,) = (one["text"] for one in facts(code=1)["findings"] if one["severity"] == "warning")
    assert "Python.h: No such file" in warning and "python3-dev" in warning
