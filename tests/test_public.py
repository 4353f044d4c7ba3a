"""The names that users see, and what could take them away."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sdp_compile as sdp

ROOT = Path(__file__).parent.parent


def submodules() -> list[str]:
    """Every module of the package, without two.

    The doctor's probe is a script that prints when it is imported. torchtitan is not in dev, and looks for a GPU when
    it is imported; the tests of its integration must come before that.
    """
    found = pkgutil.walk_packages(sdp.__path__, "sdp_compile.")
    return [one.name for one in found if not one.name.endswith(("doctor_probe", "integrations.torchtitan"))]


def test_no_submodule_takes_the_place_of_a_public_name() -> None:
    """Importing ``package.name`` binds ``name`` in the package: a module ``plan`` would replace the function."""
    for name in submodules():
        importlib.import_module(name)
    for name in sdp.__all__:
        assert not isinstance(getattr(sdp, name), ModuleType), name
    for name in ("compile", "plan", "check", "pipeline", "rule", "design", "calibrate", "clip_grad_norm_"):
        assert inspect.isfunction(getattr(sdp, name)), name
    passes = importlib.import_module("sdp_compile.passes")
    assert inspect.isfunction(passes.pipeline) and inspect.isfunction(passes.resolve_pipeline)


def test_the_documented_call_and_the_short_one_are_one_function() -> None:
    from sdp_compile import sdp_compile

    assert sdp_compile is sdp.compile
    assert sorted(sdp.__all__) == dir(sdp)
    with pytest.raises(AttributeError, match="no attribute 'compiler_'"):
        sdp.compiler_  # noqa: B018


def test_a_copy_without_its_links_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sdp_compile", tmp_path / "sdp_compile", symlinks=True)
    link = tmp_path / "sdp_compile" / "passes"
    link.unlink()
    link.write_text("../passes")  # what Git writes where there are no links
    found = subprocess.run(
        [sys.executable, "-c", "import sdp_compile"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert found.returncode != 0
    assert "sdp_compile/passes must be a link to the folder passes" in found.stderr.splitlines()[-1]


@pytest.mark.parametrize(("installed", "refused"), [("2.10.1+cu126", True), ("2.11.0", False), ("3.0.0a0", False)])
def test_an_older_torch_is_refused(installed: str, refused: bool, tmp_path: Path) -> None:
    metadata = tmp_path / "torch-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n")
    code = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}; import sdp_compile"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (found.returncode != 0) == refused
    if refused:
        last = found.stderr.splitlines()[-1]
        assert last.startswith(f"ImportError: sdp_compile needs torch 2.11 or newer, and {installed} is installed.")
