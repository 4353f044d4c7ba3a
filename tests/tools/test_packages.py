"""The check of packages, on a package of the test's own: every outcome, time limits, and a run that continues."""

from __future__ import annotations

import importlib
import json
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tools.packages.__main__ import main
from tools.packages.process import Checker
from tools.packages.results import append, read, summary
from tools.packages.trial import check_model, row

MODELS = textwrap.dedent("""
    import os
    import time

    import torch
    from torch import nn


    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            h = self.layer(x)
            return h * 2 if h.sum() > 0 else h


    def names(seed):
        return ["mlp", "branching", f"drawn{seed}"]


    def build(name):
        if name == "slow":
            time.sleep(60)
        if name == "dies":
            os._exit(7)
        if name == "wide":
            return nn.Linear(4, 4), (torch.randn(2, 5),)
        if name == "mlp":
            return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), (torch.randn(3, 4),)
        if name == "branching":
            return Branching(), (torch.randn(3, 4),)
        raise ValueError(f"no sizes for {name}")
""")
SETTINGS: dict[str, Any] = {"policy": "neuron", "workers": 2, "rank": 1, "seed": 0}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of a module with models, which processes that are started find too."""
    (tmp_path / "toy_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "toy_models"


@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("mlp", "exact", ""),
        ("branching", "refused", "toy_models.py:16"),
        ("other", "cannot build", "no sizes for other"),
        ("wide", "cannot build", "mat1 and mat2"),
    ],
)
def test_outcomes(toy: str, name: str, outcome: str, said: str) -> None:
    found = check_model(f"{toy}:{name}", **SETTINGS)
    assert found["outcome"] == outcome
    assert said in found["detail"]
    assert (found["kept"] is not None) == (outcome == "exact")


def test_a_wrong_worker_is_found(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sdp_compile.checking.check")
    right = module.assemble

    def wrong(*args: Any) -> Any:
        compiled = right(*args)
        next(compiled.parameters()).data.mul_(1.001)
        return compiled

    monkeypatch.setattr(module, "assemble", wrong)
    found = check_model(f"{toy}:mlp", **SETTINGS)
    assert found["outcome"] == "wrong"
    assert "worker 1" in found["detail"]


def test_a_model_that_ends_its_process_or_takes_too_long_is_a_crash(toy: str) -> None:
    checker = Checker(60, SETTINGS)
    try:
        assert "exit code 7" in checker.check(f"{toy}:dies")["detail"]
        assert checker.check(f"{toy}:other")["outcome"] == "cannot build"
        checker.timeout = 0.5
        late = checker.check(f"{toy}:slow")
        assert (late["outcome"], late["detail"]) == ("crash", "no verdict within 0 s")
    finally:
        checker.close()


def test_the_command_continues_and_says_by_its_exit_code_whether_all_is_well(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "packages.jsonl"
    append(file, row(f"{toy}:mlp", "exact", "", 1.0))
    arguments = ["--package", toy, "--out", str(file), "--policy", "neuron"]
    assert main(["run", *arguments, "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"1/2 {toy}:branching: refused" in printed
    assert [found["name"] for found in read(file)] == [f"{toy}:mlp", f"{toy}:branching"]
    append(file, row(f"{toy}:drawn0", "wrong", "worker 1", 1.0))
    assert main(["table", *arguments]) == 1
    assert f"wrong: {toy}:drawn0: worker 1" in capsys.readouterr().out


def test_shards_are_disjoint_and_whole(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = []
    for shard in ("0/2", "1/2"):
        main(["list", "--package", toy, "--shard", shard, "--seed", "5"])
        listed.append(capsys.readouterr().out.split())
    assert listed == [[f"{toy}:mlp", f"{toy}:drawn5"], [f"{toy}:branching"]]


def test_the_packages_take_turns(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one_model.py").write_text("def names(seed):\n    return ['only']\n")
    main(["list", "--package", toy, "--package", "one_model", "--seed", "5"])
    assert capsys.readouterr().out.split() == [f"{toy}:mlp", "one_model:only", f"{toy}:branching", f"{toy}:drawn5"]


def test_each_type_of_transformers_comes_once_before_any_comes_again() -> None:
    pytest.importorskip("transformers")
    of_transformers = importlib.import_module("tools.packages.of_transformers")
    listed = of_transformers.names(0)
    kinds = [name.partition(":")[0] for name in listed]
    number = len(set(kinds))
    assert len(set(kinds[:number])) == number
    assert len(set(listed)) == len(listed)
    assert {"bert:BertModel", "llama:LlamaForCausalLM", "clip_vision_model:CLIPVisionModel"} <= set(listed)
    assert kinds.index("clip") < kinds.index("clip_vision_model")  # of one folder, that of the folder's own name first
    assert of_transformers.names(0) == listed
    assert of_transformers.names(1) != listed


def test_the_summary_counts_by_package() -> None:
    rows = [row("a:x", "exact", "", 1.0), row("a:y", "refused", "why", 1.0), row("b:x", "crash", "how", 1.0)]
    text = summary([{**rows[0], "kept": 0.25}, *rows[1:]])
    assert text.count("25%") == 2
    assert text.index("crash: b:x: how") < text.index("refused: a:y: why")


def test_a_row_says_with_what_and_names_no_folder_of_this_machine() -> None:
    pytest.importorskip("timm")
    found = row("timm:x", "refused", "at /home/me/lib/site-packages/timm/x.py:3: if y:", 1.0)
    assert found["detail"] == "at timm/x.py:3: if y:"
    assert found["versions"] == f"timm {version('timm')}, torch {version('torch')}"


def test_a_later_row_replaces_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "packages.jsonl"
    append(file, row("a:x", "crash", "", 1.0))
    append(file, row("a:x", "exact", "", 1.0))
    assert [found["outcome"] for found in read(file)] == ["exact"]
    assert len(file.read_text().splitlines()) == 2
    assert json.loads(file.read_text().splitlines()[0])["outcome"] == "crash"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("bert:BertForMultipleChoice", {"input_ids": (2, 3, 16)}),
        ("gpt2:GPT2ForSequenceClassification", {"input_ids": (2, 16)}),
        ("bart:BartForSequenceClassification", {"input_ids": (2, 16), "attention_mask": (2, 16)}),
        ("dac:DacModel", {"input_values": (2, 1, 4000)}),
    ],
)
def test_models_of_transformers_get_inputs_that_they_take(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    pytest.importorskip("transformers")
    model, inputs = importlib.import_module("tools.packages.of_transformers").build(name)
    assert {key: tuple(value.shape) for key, value in inputs.items()} == shapes
    model(**inputs)
