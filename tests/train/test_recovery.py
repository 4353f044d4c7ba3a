"""``train`` stops before a damaged state is saved, or repairs it, and goes on as if nothing had happened."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from sdp_compile.cli.clean_errors import exit_code
from sdp_compile.errors import DamagedState
from sdp_compile.models.gpt import GPTConfig
from sdp_compile.processes import WorkerFailure, launch
from sdp_compile.train import job, loop
from sdp_compile.train.checkpoints import Checkpoints
from sdp_compile.train.corpus import Corpus
from sdp_compile.train.recovery import Recovery
from sdp_compile.train.settings import TrainSettings
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS = 4
CUT = "layers.0.mlp.up.weight"

AfterStep = Callable[..., None]
Fault = Callable[[Any, Any], None]


def flip(worker: int, model: Any, optimizer: Any) -> None:
    """Flips a bit of a value and one of a state on one worker."""
    if dist.get_rank() == worker:
        parameter = model.get_parameter(CUT)
        for tensor in (parameter.detach(), optimizer.state[parameter]["exp_avg"]):
            tensor.view(-1)[:1].view(torch.int32)[0] ^= 1 << 20


def spoil(model: Any, optimizer: Any) -> None:
    with torch.no_grad():
        model.get_parameter(CUT).fill_(torch.nan)


class Faults:
    """Runs jobs in which something happens at a step."""

    def __init__(self) -> None:
        job.GPTConfig = partial(GPTConfig, layers=1, width=32, heads=4, hidden=64, sequence=16)  # type: ignore[misc,assignment]
        job.load_corpus = lambda: Corpus(bytes(range(256)) * 8, bytes(range(256)), 1)  # type: ignore[assignment]
        loop._VALIDATION_WINDOWS = 8
        self._after_step: AfterStep = Checkpoints.after_step
        self._clip = Recovery.clip

    def run(
        self, settings: TrainSettings, before_save: dict[int, Fault], before_step: dict[int, int] | None = None
    ) -> str:
        """Runs a job; returns why it stopped. ``before_step`` doubles the gradients of a worker in a step, once."""
        doubled = dict(before_step or {})

        def after_step(checkpoints: Any, step: int, losses: Any) -> None:
            if step in before_save:
                before_save.pop(step)(checkpoints._worker, checkpoints._optimizer)
            self._after_step(checkpoints, step, losses)

        def clip(recovery: Any, model: Any, max_norm: float) -> None:
            self._clip(recovery, model, max_norm)
            if doubled.pop(recovery._step, None) == dist.get_rank():
                for parameter in model.parameters():
                    parameter.grad.mul_(2)

        Checkpoints.after_step, Recovery.clip = after_step, clip  # type: ignore[method-assign]
        try:
            job.run(settings, "cpu")
        except DamagedState as error:
            return str(error)
        return ""


def runs(rank: int, folder: Path) -> dict[str, str]:
    faults, said = Faults(), {}
    plain = TrainSettings(workers=WORKERS, steps=5, policy="neuron", coverage=0.75, batch=2, every=2)

    def settings(name: str, **options: Any) -> TrainSettings:
        (folder / name).mkdir(exist_ok=True)
        return replace(plain, output=str(folder / name), checkpoint=str(folder / name / "saved"), **options)

    said["whole"] = faults.run(settings("whole"), {})
    # A bit flips before the save of step 4. In step 1, which compares everything, a worker has other gradients.
    said["repaired"] = faults.run(settings("repaired", repair=True), {4: partial(flip, 1)}, {1: 2})
    said["stopped"] = faults.run(settings("stopped"), {4: partial(flip, 1)})
    said["there"] = " ".join(sorted(path.name for path in (folder / "stopped/saved").glob("step-*")))
    dist.barrier()
    said["resumed"] = faults.run(settings("stopped", resume="auto"), {})
    said["spoiled"] = faults.run(settings("spoiled", repair=True), {3: spoil})
    return said


def test_a_damaged_state_is_repaired_or_the_run_goes_on_from_the_newest_clean_checkpoint(tmp_path: Path) -> None:
    results = run_workers(runs, WORKERS, tmp_path, limit=250)
    said = results[0]
    assert all(other == said for other in results)
    assert (said["whole"], said["repaired"], said["resumed"]) == ("", "", "")
    assert CUT in said["stopped"] and "worker 1" in said["stopped"] and "--resume auto goes on" in said["stopped"]
    assert "step-00000002" in said["stopped"] and said["there"] == "step-00000002"
    assert "The norm of the gradient is nan in step 4" in said["spoiled"] and "cannot be repaired" in said["spoiled"]
    assert "step-00000002" in said["spoiled"]
    expected, values = (
        json.loads((tmp_path / "whole/report.json").read_text()),
        load_file(tmp_path / "whole/model.safetensors"),
    )
    assert expected["repairs"] == []
    for name in ("repaired", "stopped"):
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["train_loss"] == expected["train_loss"]
        found = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(value, found[key]) for key, value in values.items())
        if name == "repaired":
            first, second = report["repairs"]
            assert (first["step"], first["repaired"], second["step"]) == (1, [], 4)
            assert {(one["parameter"], one["state"], *one["workers"]) for one in second["repaired"]} == {
                (CUT, "", 1),
                (CUT, "exp_avg", 1),
            }


def test_workers_that_stop_so_have_an_exit_code_of_their_own() -> None:
    with pytest.raises(WorkerFailure) as caught:
        launch([sys.executable, "-c", "raise SystemExit(65)"], 2)
    assert exit_code(caught.value) == 65 == exit_code(DamagedState("x")) and exit_code(ValueError("x")) == 1
