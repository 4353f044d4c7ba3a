"""Each node saves to a disk of its own: what the disks that are left cover is enough to go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import sdp_compile as sdp
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS = 4  # each unit has 2 owners


def disk(folder: Path, node: int) -> Path:
    return folder / f"node-{node}" / "saved"


def saved(rank: int, folder: Path, nodes: list[int], sharded: bool) -> Any:
    """Two checkpoints, the states at both, and the losses of two more steps."""
    run = Run("transformer", "neuron", rank, sharded)
    options: dict[str, Any] = {"storage": "local", "keep": 2}
    states = []
    for step in (2, 4):
        run.train(2)
        run.save(disk(folder, nodes[rank]), step, **options)
        states.append(run.state())
    with pytest.raises(SDPError, match="cannot write in the background to local disks"):
        run.save(disk(folder, nodes[rank]), 5, storage="local", asynchronous=True)
    return states, run.train(2), run.state()


def resumed(rank: int, folder: Path, nodes: list[int], sharded: bool) -> Any:
    run = Run("transformer", "neuron", rank, sharded, seed=5)
    place = disk(folder, nodes[rank])
    loader = len(nodes) == WORKERS
    restored = sdp.load_checkpoint(
        place,
        run.model,
        run.optimizer,
        scheduler=run.scheduler,
        loader=run.batches if loader else None,
        storage="local",
    )
    state = run.state()
    losses = run.train(2) if loader else []
    return restored.step, restored.path, state, losses, run.state()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("disks")
    return folder, run_workers(saved, WORKERS, folder, [0, 1, 2, 3], False)


def copied(folder: Path, target: Path, *lost: int) -> Path:
    for node in set(range(WORKERS)).difference(lost):
        shutil.copytree(folder / f"node-{node}", target / f"node-{node}")
    return target


def test_each_disk_has_the_files_of_its_workers_and_the_manifest(before: tuple[Path, Any]) -> None:
    for node in range(WORKERS):
        place = disk(before[0], node) / "step-00000004"
        assert [path.name for path in place.glob("*.distcp")] == [f"__{node}_0.distcp"]
        assert {path.name for path in place.glob("worker-*")} == {f"worker-{worker}.json" for worker in range(WORKERS)}
        assert not [path for path in place.parent.iterdir() if path.name.startswith((".step", ".probe"))]


@pytest.mark.parametrize("lost", [1, 0])
def test_four_workers_go_on_with_an_empty_disk(before: tuple[Path, Any], lost: int, tmp_path: Path) -> None:
    folder, expected = before
    results = run_workers(resumed, WORKERS, copied(folder, tmp_path, lost), [0, 1, 2, 3], False)
    for rank, (step, path, state, losses, after) in enumerate(results):
        assert step == 4 and path == disk(tmp_path, rank) / "step-00000004"
        same(state, expected[rank][0][1])
        assert losses == expected[rank][1]
        same(after, expected[rank][2])
    assert (disk(tmp_path, lost) / "step-00000004" / f"worker-{lost}.json").exists()


def test_three_workers_go_on_without_a_disk(before: tuple[Path, Any], tmp_path: Path) -> None:
    folder, expected = before
    for step, _, state, _, _ in run_workers(resumed, 3, copied(folder, tmp_path, 2), [0, 1, 3], False):
        assert step == 4
        same(state, expected[0][0][1], leave_out=("groups",))


def test_the_newest_step_that_is_covered_counts(before: tuple[Path, Any], tmp_path: Path) -> None:
    """Of the newest, one disk is gone, and the files on the others are damaged."""
    folder, expected = before
    copied(folder, tmp_path, 1)
    for node in (0, 2, 3):
        file = disk(tmp_path, node) / "step-00000004" / f"__{node}_0.distcp"
        manifest = Checkpoint(file.parent).manifest
        chunks = [chunk for _, entry in manifest.tensors() for chunk in entry.chunks]
        content = bytearray(file.read_bytes())
        content[max(chunk.start for chunk in chunks if manifest.files[chunk.file].name == file.name)] ^= 1
        file.write_bytes(content)
    for step, _, state, _, _ in run_workers(resumed, 3, tmp_path, [0, 2, 3], False):
        assert step == 2
        same(state, expected[0][0][0], leave_out=("groups",))


def refused(rank: int, folder: Path, nodes: list[int]) -> str:
    with pytest.raises(SDPError) as raised:
        resumed(rank, folder, nodes, False)
    return str(raised.value)


def test_disks_that_cover_nothing_are_an_error(before: tuple[Path, Any], tmp_path: Path) -> None:
    copied(before[0], tmp_path, 1, 2, 3)
    for text in run_workers(refused, 2, tmp_path, [0, 1]):
        assert "No checkpoint is whole on the disks that are left." in text and "is on no disk that is left" in text
    for text in run_workers(refused, 2, tmp_path / "empty", [0, 1]):
        assert "There is no checkpoint in" in text


def test_two_workers_of_a_node_share_a_disk_also_when_sharded(tmp_path: Path) -> None:
    expected = run_workers(saved, WORKERS, tmp_path, [0, 0, 1, 1], True)
    places = [disk(tmp_path, node) / "step-00000004" for node in (0, 1)]
    assert [sorted(path.name for path in place.glob("*.distcp")) for place in places] == [
        ["__0_0.distcp", "__1_0.distcp"],
        ["__2_0.distcp", "__3_0.distcp"],
    ]
    results = run_workers(resumed, WORKERS, tmp_path, [0, 0, 1, 1], True)
    for rank, (step, _, state, losses, after) in enumerate(results):
        assert step == 4
        same(state, expected[rank][0][1])
        assert losses == expected[rank][1]
        same(after, expected[rank][2])
