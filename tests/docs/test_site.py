"""The site builds strictly and without network, and what it says stays in step with the package."""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import sdp_compile
from sdp_compile.cli.main import app
from tests.test_layers import LAYERS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TEXTS = [*(DOCS / page for page in PAGES), *ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Strict: a broken link, a page outside the navigation or a wrong docstring ends the build."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


def read(site: Path, page: str) -> str:
    return (site / page).with_suffix(".html").read_text(encoding="utf-8")


def navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else navigation(value)


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    # The comments and the theme's tags are not read, so the safe loader does.
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(navigation(settings["nav"])) == PAGES
    assert all((site / page).with_suffix(".html").exists() for page in PAGES)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//|class="mermaid""")
    for page in PAGES:
        assert not loads.search(read(site, page)), page
    for style in site.rglob("*.css"):
        assert not re.search(r"""url\(["']?(?:https?:)?//|@import""", style.read_text(encoding="utf-8")), style


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    identifiers = set(re.findall(r'id="sdp_compile\.(\w+)"', read(site, "reference/api.md")))
    assert set(sdp_compile.__all__) - {"__version__", "compile"} <= identifiers


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = html.unescape(re.sub(r"<[^>]+>", "", read(site, "reference/command-line.md")))
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        section = page.partition(f"sdp-compile {name}¶")[2].partition("¶")[0]
        for parameter in command.params:
            assert max(parameter.opts, key=len) in section, (name, parameter.name)
    assert "[bold]" not in page


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_that_a_text_shows_can_be_given(text: Path) -> None:
    """Their arguments and options exist; nothing is run."""
    group: Any = typer.main.get_command(app)
    joined = text.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\.venv/bin/)?sdp-compile (.+)$", joined, re.MULTILINE):
        name, *arguments = shlex.split(line, comments=True)
        group.commands[name].make_context(name, arguments)  # raises where --help would not list it


def test_the_rooms_are_those_of_the_package_in_order() -> None:
    text = (DOCS / "architecture" / "index.md").read_text(encoding="utf-8")
    table = text.partition("## The rooms of the package")[2].partition("\n## ")[0]
    folders = {path.parent.name for path in (ROOT / "sdp_compile").glob("*/__init__.py")}
    rooms = dict.fromkeys(room.partition(".")[0] for layer in LAYERS for room in layer)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [room for room in rooms if room in folders]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_a_text_names_exist(text: Path) -> None:
    """Paths in backticks from the repository's root, and links from the texts outside of the site."""
    content = text.read_text(encoding="utf-8")
    roots = r"(?:sdp_compile|passes|policies|tests|docs|examples)/"
    named = re.findall(rf"`({roots}[\w./]*)`", content)
    links = [] if DOCS in text.parents else re.findall(r"\]\((?!https?:|#)([^)#]+)", content)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (text.parent / link).exists()]
    assert not missing


def test_version_and_license_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sdp_compile.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog and sdp_compile.__version__ in changelog


def test_bug_reports_ask_for_what_is_needed() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text(encoding="utf-8"))
    required = {item["id"]: item["attributes"]["label"] for item in form["body"] if item.get("validations")}
    assert {"model", "policy", "doctor"} <= set(required)
    assert "sdp-compile doctor --json" in required["doctor"]


def test_hooks_run_the_tools_of_the_environment() -> None:
    """No hook is downloaded, and CI runs the same tools."""
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for repository in settings["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system" and hook["entry"].split()[0] in ci
    assert "mkdocs build --strict" in ci
