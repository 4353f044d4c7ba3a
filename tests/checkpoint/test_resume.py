"""A run that is stopped and resumed: with the same plan bit by bit, elsewhere with the same full state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS = 4


def uninterrupted(rank: int, folder: Path, name: str, kind: str, sharded: bool, lowering: str, options: Any) -> None:
    torch.manual_seed(100 + rank)
    run = Run(name, kind, rank, sharded, lowering)
    run.train(3)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    place = run.save(folder, 3, **options)
    assert place == folder / "step-00000003"
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    losses = run.train(3)
    expected = run.state(), torch.rand(3)
    local = {key: value.clone() for key, value in run.model.state_dict().items()}
    del run  # a model has one ShardedOptimizer

    torch.manual_seed(7)
    resumed = Run(name, kind, rank, sharded, lowering, seed=5)
    resumed.train(1)
    restored = resumed.load(folder)
    assert (restored.path, restored.step, restored.samples) == (place, 3, 40)
    assert restored.extra == {"best": (1, 0.5)} and restored.same_workers and restored.workers == WORKERS
    assert resumed.train(3) == losses
    found = resumed.state(), torch.rand(3)
    same(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    if lowering == "sliced":  # else there are elements that nobody reads
        for key, value in resumed.model.state_dict().items():
            assert torch.equal(value, local[key]), key


@pytest.mark.parametrize(
    ("name", "kind", "sharded", "lowering", "options"),
    [
        ("transformer", "neuron", False, "sliced", {}),
        ("transformer", "neuron", True, "sliced", {}),
        ("transformer", "neuron", True, "sliced", {"redundancy": "owners"}),
        ("transformer", "neuron-backward", True, "sliced", {}),
        ("transformer", "neuron", False, "masked", {"redundancy": "owners"}),
        ("cnn", "block", False, "sliced", {}),
        ("cnn", "neuron", True, "sliced", {}),
        ("cnn", "block-backward", False, "sliced", {}),
    ],
)
def test_the_same_plan_goes_on_bit_by_bit(
    name: str, kind: str, sharded: bool, lowering: str, options: Any, tmp_path: Path
) -> None:
    run_workers(uninterrupted, WORKERS, tmp_path, name, kind, sharded, lowering, options)


def saved(rank: int, folder: Path, name: str, kind: str, sharded: bool, steps: int, load: bool) -> Any:
    """Resumes where ``load`` says so, trains and saves."""
    run = Run(name, kind, rank, sharded, seed=0 if steps == 2 else 9)
    found = None
    if load:
        restored = run.load(folder, loader=False)
        found = run.state(), restored.same_workers, restored.workers
    losses = run.train(2)
    run.save(folder, steps)
    return found, run.state(), losses


STATION = tuple[str, int, bool]


@pytest.mark.parametrize(
    ("name", "stations"),
    [
        ("transformer", [("neuron", 4, False), ("block", 2, True), ("neuron-backward", 4, False)]),
        ("transformer", [("neuron-backward", 4, True), ("dense", 1, False), ("neuron", 3, True)]),
        ("cnn", [("block", 3, False), ("dense", 1, False), ("block-backward", 2, True)]),
    ],
)
def test_another_number_of_workers_policy_and_masking_gets_the_same_state(
    name: str, stations: list[STATION], tmp_path: Path
) -> None:
    last: dict[str, Any] = {}
    trained: list[float] = []
    for number, (kind, workers, sharded) in enumerate(stations):
        arguments = (tmp_path, name, kind, sharded, 2 * (number + 1), number > 0)
        results = run_workers(saved, workers, *arguments)
        for found, _, losses in results:
            trained += losses
            if number:
                same(found[0], last)
                assert found[1:] == (stations[number - 1][1] == workers, stations[number - 1][1])
        last = results[0][1]
    assert all(loss < 40 for loss in trained)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [f"step-{2 * n:08d}" for n in (1, 2, 3)]


def test_the_compiled_model_of_one_worker_is_the_dense_one(tmp_path: Path) -> None:
    ((_, dense, _),) = run_workers(saved, 1, tmp_path, "transformer", "dense", False, 2, False)
    ((found, _, _),) = run_workers(saved, 1, tmp_path, "transformer", "neuron", False, 4, True)
    same(found[0], dense)


def failure(rank: int, folder: Path) -> dict[str, str]:
    run = Run("transformer", "neuron", rank)
    found: dict[str, str] = {}

    def attempt(what: str, call: Any) -> None:
        with pytest.raises(SDPError) as raised:
            call()
        found[what] = str(raised.value)

    attempt("nothing", lambda: run.load(folder / "nothing"))
    attempt("step", lambda: run.save(folder, -1))
    attempt("keep", lambda: run.save(folder, 1, keep=0))
    attempt("redundancy", lambda: run.save(folder, 1, redundancy="all"))
    attempt("different steps", lambda: run.save(folder, rank))
    attempt("one fails", lambda: run.save(folder, 1, extra={} if rank else {"f": print}))
    if rank == 0:
        run.scheduler.last_epoch = 3
    attempt("other schedules", lambda: run.save(folder, 1))
    if rank == 0:
        run.scheduler.last_epoch = 0
    run.save(folder, 1)
    other = torch.optim.SGD(run.model.parameters(), lr=0.1)
    attempt("optimizer", lambda: sdp.load_checkpoint(folder, run.model, other))
    attempt("scaler", lambda: sdp.load_checkpoint(folder, run.model, scaler=sdp.GradScaler("cpu")))
    attempt("schedulers", lambda: sdp.load_checkpoint(folder, run.model, scheduler=[run.scheduler, run.scheduler]))
    sdp.save_checkpoint(folder / "alone", run.model, step=1)
    attempt("no optimizer", lambda: run.load(folder / "alone", loader=False))
    attempt("another", lambda: sdp.load_checkpoint(folder if rank else folder / "alone", run.model))
    model = Run("cnn", "block", rank).model
    attempt("model", lambda: sdp.load_checkpoint(folder, model))
    return found


def test_what_cannot_be_is_an_error_on_all_workers(tmp_path: Path) -> None:
    for rank, found in enumerate(run_workers(failure, 2, tmp_path)):
        for what, words in {
            "nothing": "does not exist",
            "step": "step of sdp.save_checkpoint() must be an integer of at least 0, got -1",
            "keep": "keep of sdp.save_checkpoint() must be an integer of at least 1, got 0",
            "redundancy": "must be 'none' or 'owners', got 'all'",
            "different steps": "step=1",
            "one fails": "extra holds a builtins.builtin_function_or_method",
            "other schedules": "shared state",
            "optimizer": "has the state of AdamW, but this is SGD",
            "scaler": "no gradient scaler",
            "schedulers": "has 1 schedulers, and 2 are to be loaded",
            "no optimizer": "no optimizer state",
            "another": "different checkpoints",
            "model": "that of another model: it lacks stem.weight",
        }.items():
            assert words in found[what], (rank, what, found[what])


def position(rank: int, folder: Path) -> str:
    run = Run("transformer", "neuron", rank)
    with pytest.raises(SDPError) as raised:
        run.load(folder)
    return str(raised.value)


def test_data_positions_of_other_workers_are_not_handed_out(tmp_path: Path) -> None:
    dense = Run("transformer", "dense")
    dense.save(tmp_path, 2)
    for text in run_workers(position, 2, tmp_path):
        assert "the data positions of 1 workers, and now there are 2" in text and "which is 40" in text
