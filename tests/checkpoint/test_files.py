"""What a disk can do to checkpoints, and what a hostile file can try."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdp_compile as sdp
from sdp_compile.checkpoint import folder as folders
from sdp_compile.checkpoint import writing
from sdp_compile.checkpoint.manifest import FORMAT, _digest
from sdp_compile.errors import SDPError
from tests.checkpoint.training import Run, same
from tests.runtime.models import build

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run() -> Run:
    run = Run("transformer", "dense")
    run.train(1)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run("transformer", "dense")
    run.train(1)
    place: Path = run.save(tmp_path_factory.mktemp("whole"), 1)
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Iterator[Path]:
    copied = tmp_path / "copy" / whole.name
    shutil.copytree(whole, copied)
    yield copied


def load(path: Path) -> sdp.Restored:
    return Run("transformer", "dense", seed=3).load(path)


def test_the_last_ones_are_kept_and_the_newest_is_loaded(run: Run, tmp_path: Path) -> None:
    for step in (100, 200, 300):
        run.save(tmp_path, step, keep=2, extra={"turn": 1})
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000200", "step-00000300"]
    run.save(tmp_path, 150, keep=2, extra={"turn": 2})  # of a run that went on from an earlier one
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000150", "step-00000300"]
    assert load(tmp_path).step == 150
    run.save(tmp_path, 300, keep=2, extra={"turn": 3})
    assert load(tmp_path).extra == {"turn": 3} and load(tmp_path / "step-00000150").extra == {"turn": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000150", "step-00000300", ".lock"}


def test_half_written_checkpoints_are_none(run: Run, tmp_path: Path) -> None:
    first = run.save(tmp_path, 1)
    shutil.copytree(first, tmp_path / ".step-00000002.new", ignore=shutil.ignore_patterns("order"))
    shutil.copytree(first, tmp_path / "step-00000003")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    shutil.copytree(first, tmp_path / ".step-00000004.gone")
    shutil.move(first, tmp_path / ".step-00000001.old")  # killed while it was replaced
    run.save(tmp_path, 5)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "step-00000001", "step-00000003", "step-00000005"}
    assert load(tmp_path).step == 5 and load(tmp_path / "step-00000001").step == 1
    with pytest.raises(SDPError, match="has no manifest"):
        load(tmp_path / "step-00000003")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("at", range(8))
def test_a_write_that_fails_leaves_what_was_intact(
    code: int, at: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(tmp_path, 1)
    before, calls = run.state(), [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == at + 1:
                raise OSError(code, os.strerror(code), "the disk")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", failing(Path.mkdir))
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "write_text", failing(Path.write_text))
        patch.setattr(writing, "_write", failing(writing._write))
        if at == 0:
            patch.setattr(shutil, "disk_usage", failing(shutil.disk_usage))
        with pytest.raises(SDPError, match=f"the disk: {os.strerror(code)}"):
            run.save(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "step-00000001"}
    load(tmp_path)
    run.save(tmp_path, 2)
    resumed = Run("transformer", "dense", seed=3)
    assert resumed.load(tmp_path).step == 2
    same(resumed.state(), before)


def test_a_disk_without_space_is_an_error_before_anything_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with pytest.raises(SDPError, match=r"The checkpoint takes about .* but .* has 976\.6 KiB left"):
        run.save(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_another_job_in_the_same_folder_is_refused(run: Run, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sdp_compile.checkpoint.folder import claim\n"
        "claim(Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"mine\n"
        with pytest.raises(SDPError, match="Another running job writes its checkpoints to"):
            run.save(tmp_path, 1)
        other.kill()
    run.save(tmp_path, 1)


def data_file(place: Path) -> Path:
    (found,) = place.glob("*.distcp")
    return found


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_is_found_wherever_values_lie(place: Path) -> None:
    manifest = json.loads((place / "manifest.json").read_text())["checkpoint"]
    names = ["embed.weight", "norm.bias"]
    for name in names:
        (chunk,) = manifest["model"][name]["chunks"]
        flip(data_file(place), chunk["start"] + chunk["nbytes"] - 1)
        with pytest.raises(SDPError, match=rf"'{name}'.* is lost with its only copy: .*damaged at byte"):
            load(place)
        flip(data_file(place), chunk["start"] + chunk["nbytes"] - 1)
    load(place)
    flip(place / "worker-0.json", 30)
    with pytest.raises(SDPError, match=r"worker-0\.json is damaged"):
        load(place)


def test_flipped_bits_in_the_manifest_are_found(place: Path) -> None:
    path = place / "manifest.json"
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 60)):
        flip(path, at)
        with pytest.raises(SDPError, match=r"manifest\.json is not the manifest of a checkpoint, or is damaged"):
            load(place)
        path.write_bytes(content)
    load(place)


def test_truncated_and_missing_files_are_named(place: Path) -> None:
    path = data_file(place)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(SDPError, match=rf"__0_0\.distcp has {len(content) - 1} bytes instead of {len(content)}"):
        load(place)
    path.unlink()
    with pytest.raises(SDPError, match=r"__0_0\.distcp is missing"):
        load(place)
    path.symlink_to("/etc/passwd")
    with pytest.raises(SDPError, match=r"__0_0\.distcp is missing"):
        load(place)


def test_a_pickle_is_never_read(place: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('code ran')",)

    (place / ".metadata").write_bytes(pickle.dumps(Bomb()))
    load(place)
    (place / "manifest.json").unlink()
    with pytest.raises(SDPError, match="Its description is a pickle, and reading a pickle runs code"):
        load(place)


def change(document: Any, path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


CHUNK = ["model", "embed.weight", "chunks", 0]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["files", 0, "name"], "../../../etc/passwd", "is no file of the checkpoint"),
        (["files", 0, "name"], "/etc/passwd", "is no file of the checkpoint"),
        (["files", 0, "name"], "..", "is no file of the checkpoint"),
        (["files", 0, "name"], "a\x00b", "is no file of the checkpoint"),
        (["files", 1, "name"], "__0_0.distcp", "two files have the same name"),
        (["files", 0, "worker"], 7, "is no file of the checkpoint"),
        (["byteorder"], "big", "big-endian"),
        (["step"], -1, "step"),
        (["step"], "1", "step"),
        (["workers"], 0, "workers"),
        (["more"], 1, "more"),
        (["keys", "norm.bias"], "else", "which it lacks"),
        (["model", "norm.bias", "dtype"], "nn", "unknown dtype"),
        (["model", "norm.bias", "shape"], [10**15], "do not cover"),
        (["model", "norm.bias", "shape"], [-1], "has the shape"),
        (["model", "norm.bias", "shape"], [4, 4], "a chunk with 1 dimensions instead of 2"),
        (["model", "norm.bias", "chunks"], [], "do not cover"),
        ([*CHUNK, "file"], 9, "a chunk in file 9 of 2"),
        ([*CHUNK, "start"], 10**15, "outside of its file"),
        ([*CHUNK, "nbytes"], 8, "outside of its file|8 bytes for"),
        ([*CHUNK, "blob"], [0, 10**15], "outside of its file"),
        ([*CHUNK, "offsets"], [1, 0], "outside of its shape"),
        ([*CHUNK, "sizes"], [1, 16], "bytes for 16 elements"),
        ([*CHUNK, "crc"], 2**32, "crc"),
    ],
)
def test_manifests_that_cannot_be_are_refused_before_anything_is_read(
    path: list[Any], value: Any, words: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / "manifest.json"
    document = json.loads(file.read_text())
    change(document["checkpoint"], path, value)
    document["digest"] = _digest(document["checkpoint"])
    file.write_text(json.dumps(document))
    model = build("transformer")
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("allocated"))
    with pytest.raises(SDPError, match=words):
        sdp.load_checkpoint(place, model)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_manifest_is_a_clear_error_or_loads(data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    document = json.loads((whole / "manifest.json").read_text())["checkpoint"]
    for _ in range(data.draw(st.integers(1, 2))):
        at: Any = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and data.draw(st.integers(0, 7)):
                at = at[key]
                continue
            at[key] = data.draw(JSON)
            break
    shutil.rmtree(tmp_path / "fuzzed", ignore_errors=True)
    shutil.copytree(whole, tmp_path / "fuzzed")
    text = json.dumps({"format": FORMAT, "digest": _digest(document), "checkpoint": document})
    (tmp_path / "fuzzed" / "manifest.json").write_text(text)
    try:
        load(tmp_path / "fuzzed")
    except SDPError as error:
        assert len(str(error)) < 2000


def test_other_texts_are_no_manifest(place: Path) -> None:
    for text in ("", "[" * 100_000, "[]", "{}", "1", '{"format": 1}', f'{{"format": "{FORMAT}"}}', "\xff"):
        (place / "manifest.json").write_text(text, encoding="latin1")
        with pytest.raises(SDPError, match="is damaged"):
            load(place)


def test_a_folder_of_another_purpose_is_named(tmp_path: Path) -> None:
    assert folders.whole_checkpoints(tmp_path / "nothing") == []
    with pytest.raises(SDPError, match="is no checkpoint and holds none"):
        load(tmp_path)
