"""``sdp-compile checkpoint --repair``: damaged, truncated and lost files are written anew from other owners'."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdp_compile.checkpoint.mending import mend
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.cli.main import app
from tests.checkpoint.training import Run
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")


def saved(rank: int, folder: Path) -> tuple[Path, Path]:
    run = Run("transformer", "neuron", rank)
    run.train(1)
    return run.save(folder / "owners", 1, redundancy="owners"), run.save(folder / "none", 1)


def flips(path: Path, seed: int, count: int, places: list[tuple[int, int]]) -> None:
    """Flips bits of values: (first byte, length)."""
    content, drawn = bytearray(path.read_bytes()), random.Random(seed)
    for start, nbytes in drawn.sample(places, count):
        content[start + drawn.randrange(nbytes)] ^= 1 << drawn.randrange(8)
    path.write_bytes(content)


def places_in(place: Path, worker: int) -> list[tuple[int, int]]:
    manifest = Checkpoint(place).manifest
    assert manifest.optimizer is not None
    entries = [
        *manifest.model.values(),
        *(one for some in manifest.optimizer.tensors.values() for one in some.values()),
    ]
    name = f"__{worker}_0.distcp"
    chunks = [chunk for entry in entries for chunk in entry.chunks if manifest.files[chunk.file].name == name]
    return [(chunk.start, chunk.nbytes) for chunk in chunks]


def test_damaged_files_are_written_anew_bit_by_bit(tmp_path: Path) -> None:
    owners, none = run_workers(saved, 4, tmp_path)[0]
    original = {path.name: path.read_bytes() for path in owners.iterdir()}

    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1000])

    def several() -> None:
        for worker in (0, 2):  # each in other parts
            flips(owners / f"__{worker}_0.distcp", worker, 3, places_in(owners, worker)[worker::4])

    damages: dict[str, Callable[[], None]] = {
        "one bit": lambda: flips(owners / "__1_0.distcp", 0, 1, places_in(owners, 1)),
        "several bits of two files": several,
        "truncated": lambda: truncate(owners / "__3_0.distcp"),
        "missing": (owners / "__2_0.distcp").unlink,
    }
    for what, damage in damages.items():
        damage()
        result = CliRunner().invoke(app, ["checkpoint", str(owners.parent), "--repair"])
        assert result.exit_code == 0 and "Repaired" in result.output, (what, result.output)
        assert {path.name: path.read_bytes() for path in owners.iterdir()} == original, what
    assert mend(owners).files == ()
    with (owners / "__1_0.distcp").open("ab") as file:
        file.write(b"more")
    assert (
        mend(owners).files == ("__1_0.distcp",) and (owners / "__1_0.distcp").read_bytes() == original["__1_0.distcp"]
    )

    # What has no copy stays, and is named; the rest is repaired.
    (owners / "worker-1.json").write_text("{}")
    flips(owners / "__1_0.distcp", 5, 1, places_in(owners, 1))
    result = CliRunner().invoke(app, ["checkpoint", str(owners), "--repair"])
    assert result.exit_code == 1 and "Still damaged" in result.output and "worker-1.json" in result.output
    assert (owners / "__1_0.distcp").read_bytes() == original["__1_0.distcp"]
    (owners / "__0_0.distcp").unlink()  # with what only torch's reader reads
    assert "no other file has" in " ".join(mend(owners).left) and not (owners / "__0_0.distcp").exists()

    flips(none / "__1_0.distcp", 0, 1, places_in(none, 1))
    before = shutil.copytree(none, tmp_path / "before") / "__1_0.distcp"
    left = mend(none).left
    assert len(left) == 1 and "has no intact copy" in left[0]
    assert (none / "__1_0.distcp").read_bytes() == before.read_bytes()
