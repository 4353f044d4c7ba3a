"""Manifests that say what their files cannot hold, and models whose tensors are more than their bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile.checkpoint import writing
from sdp_compile.checkpoint.manifest import _digest
from sdp_compile.checkpoint.merge import merge
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return sdp.save_checkpoint(tmp_path, nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 3)), step=1)


def changed(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((place / "manifest.json").read_text())
    change(document["checkpoint"])
    document["digest"] = _digest(document["checkpoint"])
    (place / "manifest.json").write_text(json.dumps(document))


LIMITED = """
import os, resource, sys
from pathlib import Path
from sdp_compile.checkpoint.merge import merge
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + 2**28
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(merge(sys.argv[1], sys.argv[2]).tensors)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("shape", [[2**28, 0], [0, 2**62], [2**62, 2**62, 0]])
def test_tensors_without_elements_take_no_memory(shape: list[int], place: Path, tmp_path: Path) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        for number in range(20):
            checkpoint["model"][f"e{number}"] = {"dtype": "float32", "shape": shape, "chunks": []}
            checkpoint["keys"][f"e{number}"] = f"e{number}"

    changed(place, change)
    command = [sys.executable, "-c", LIMITED, str(place), str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env={**os.environ})
    assert done.stdout == "24\n", done.stderr[-2000:]


def test_parts_cannot_share_bytes(place: Path) -> None:
    """Else a small file would stand for a tensor of any size."""

    def change(checkpoint: dict[str, Any]) -> None:
        entry = checkpoint["model"]["0.weight"]
        (chunk,) = entry["chunks"]
        entry["shape"][0] *= 8
        entry["chunks"] = [{**chunk, "offsets": [64 * part, 0]} for part in range(8)]

    changed(place, change)
    with pytest.raises(SDPError, match=r"'0\.weight' has chunks that share bytes of __0_0\.distcp"):
        Checkpoint(place)


@pytest.mark.parametrize("dtype", ["qint8", "quint4x2", "bits8", "uint4", "nn", "float33"])
def test_dtypes_that_are_more_than_bytes_are_refused(dtype: str, place: Path) -> None:
    changed(place, lambda checkpoint: checkpoint["model"]["1.bias"].update(dtype=dtype))
    with pytest.raises(SDPError, match=f"unknown dtype '{dtype}'"):
        Checkpoint(place)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["quantized", "sparse"])
def test_such_tensors_are_not_saved(kind: str, tmp_path: Path) -> None:
    model, values = nn.Linear(3, 3), torch.eye(3)
    made = torch.quantize_per_tensor(values, 0.1, 0, torch.qint8) if kind == "quantized" else values.to_sparse()
    model.register_buffer("table", made)
    with pytest.raises(SDPError, match=r"'table' is .*, which a checkpoint cannot hold"):
        sdp.save_checkpoint(tmp_path, model, step=1)
    assert not list(tmp_path.glob("*step*"))


def test_the_whole_of_a_tensor_is_what_was_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 3))
    checkpoint = Checkpoint(sdp.save_checkpoint(tmp_path, model, step=1))
    for name, value in model.state_dict().items():
        assert torch.equal(checkpoint.whole(checkpoint.manifest.model[name], name), value)


def test_a_description_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdp.save_checkpoint(tmp_path, nn.Linear(3, 3), step=1)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "MOST_BYTES", 500)
        with pytest.raises(SDPError, match=r"has 2 parts of tensors, whose description of \d+ bytes is larger"):
            sdp.save_checkpoint(tmp_path, nn.Linear(3, 3), step=2)
    assert [path.name for path in tmp_path.glob("*step*")] == ["step-00000001"]
    merge(tmp_path, tmp_path / "model.safetensors")


def test_the_space_of_many_small_parts_is_foreseen(tmp_path: Path) -> None:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(200))
    place = sdp.save_checkpoint(tmp_path, model, step=1)
    taken = sum(path.stat().st_size for path in place.iterdir())
    values = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert 100 * values < taken < values + 400 * writing.ITEM_BYTES < 2 * taken
