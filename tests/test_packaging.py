"""What is shipped: wheel and sdist hold passes and policies once, inside the package, and import from there."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a ``wheel`` or ``sdist`` with the declared backend, in this environment."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    target.mkdir(exist_ok=True)
    result = python("-c", code, str(target), cwd=source)
    assert result.returncode == 0, result.stderr
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of a copy of this checkout, links as links."""
    folder = tmp_path_factory.mktemp("packaging")
    ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "build", "dist", "__pycache__", ".*_cache", "sdp-*")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignored)
    return build("wheel", folder / "source", folder / "out"), build("sdist", folder / "source", folder / "out")


def modules() -> set[str]:
    """Every module of the checkout, as it is to be found in a wheel."""

    def walk(folder: Path, inside: str) -> Iterator[str]:
        yield from (f"{inside}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py"))

    own = (
        path for path in walk(ROOT / "sdp_compile", "sdp_compile") if path.split("/")[1] not in ("passes", "policies")
    )
    return {*own, *walk(ROOT / "passes", "sdp_compile/passes"), *walk(ROOT / "policies", "sdp_compile/policies")}


def test_wheel_holds_every_module_once(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name for name in names if name.endswith(".py")} == modules()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sdp_compile"}
    assert "sdp_compile/policies/schedules/growing.toml" in names
    assert "sdp_compile/py.typed" in names and "sdp_compile/report_page/templates/page.html.j2" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_builds_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = tmp_path.iterdir()
    again = build("wheel", source, tmp_path / "out")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("name", ["passes", "policies"])
def test_installed_wheel_has_one_identity_of_each_module(built: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """A wheel is a zip that Python can import from: no environment needs to be made for it."""
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    check = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sdp_compile.{name} as m; print(m.__file__)"
    result = python("-P" if sys.version_info >= (3, 11) else "-I", "-c", check, cwd=tmp_path.parent)
    assert result.stdout.strip() == str(tmp_path / "sdp_compile" / name / "__init__.py"), result.stderr
    bare = python("-c", f"import {name}", cwd=tmp_path)
    assert bare.returncode != 0
    assert "ModuleNotFoundError" in bare.stderr


@pytest.mark.parametrize("name", ["passes", "policies"])
def test_in_a_checkout_bare_imports_are_refused(name: str) -> None:
    good = python("-c", f"import sdp_compile.{name}", cwd=ROOT)
    assert good.returncode == 0, good.stderr
    for statement in (f"import {name}", f"import {name}.anything"):
        bare = python("-c", statement, cwd=ROOT)
        assert bare.returncode != 0
        assert f"sdp_compile.{name}" in bare.stderr
    assert (ROOT / "sdp_compile" / name).is_symlink()
    assert not (ROOT / "sdp_compile" / name).readlink().is_absolute()


def test_version_has_one_place(built: tuple[Path, Path]) -> None:
    import sdp_compile

    assert f"-{sdp_compile.__version__}-" in built[0].name
    assert "version" in PROJECT["project"]["dynamic"]


def test_linter_reads_no_file_twice() -> None:
    result = python("-m", "ruff", "check", "--show-files", ".", cwd=ROOT)
    files = [Path(line) for line in result.stdout.splitlines() if line.endswith(".py")]
    assert ROOT / "policies" / "__init__.py" in files
    assert len({path.resolve() for path in files}) == len(files)


def commands() -> list[str]:
    """README's commands: the lines that set up a virtual environment."""
    return [line for line in README.read_text().splitlines() if line.startswith("python3 -m venv")]


def test_readme_names_two_commands_and_ci_runs_the_second() -> None:
    run, test = commands()
    assert run.endswith("sdp-compile train")
    assert "-m pytest" in test
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()
