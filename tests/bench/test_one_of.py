"""One worker of many: its memory against bytes counted by hand, its step against the race's, and what is refused."""

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.bench.one_of.calls import Calls
from sdp_compile.bench.one_of.plot import write_memory_plot
from sdp_compile.bench.one_of.run import run
from sdp_compile.bench.one_of.settings import OneOfSettings
from sdp_compile.bench.one_of.storages import LiveStorages
from sdp_compile.bench.one_of.variants import VARIANTS
from sdp_compile.errors import PolicyError, SDPError
from tests.bench.models import Residual

MODEL = f"{Path(__file__).parent / 'models.py'}:residual"
FLOAT = 4


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function in a process of its own: it joins a process group for good."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result(240)


def test_storages_count_once_and_while_they_live() -> None:
    kept = torch.ones(1000)
    with LiveStorages("cpu") as storages:
        before = storages.nbytes
        doubled = kept * 2
        view = doubled.view(10, 100)
        assert storages.nbytes - before == 1000 * FLOAT
        del doubled
        assert storages.nbytes - before == 1000 * FLOAT
        del view
        assert storages.nbytes == before
        assert storages.peak - before == 1000 * FLOAT
        storages.restart()
        assert storages.peak == before


def test_calls_are_counted_without_views() -> None:
    tensor = torch.ones(10, 10)
    with Calls() as calls:
        torch._foreach_add_([tensor.t(), tensor[0]], 1.0)
        tensor.view(100).split(10)
    assert (calls.others, calls.views) == (1, 4)


def test_what_autograd_saves_counts() -> None:
    weight = nn.Parameter(torch.ones(100))
    with LiveStorages("cpu") as storages:
        before = storages.nbytes
        loss = (weight * 2).exp().sum()
        assert storages.nbytes - before == 100 * FLOAT + FLOAT  # the exponential, and the loss
        loss.backward()
        del loss
        assert storages.nbytes - before == 100 * FLOAT  # the gradient


def test_a_resized_storage_counts_with_its_new_size() -> None:
    tensor = torch.ones(1000)
    with LiveStorages("cpu") as storages:
        before = storages.nbytes
        tensor.untyped_storage().resize_(0)
        assert before - storages.nbytes == 1000 * FLOAT
        tensor.untyped_storage().resize_(2000 * FLOAT)
        torch.ones(1)
        assert storages.peak - before >= 1000 * FLOAT


NAMES = ("ddp", "fsdp2", "sdp-neuron", "sdp-neuron-sharded", "sdp-block", "sdp-backward-neuron", "sdp-backward-block")


def every_variant() -> dict[str, dict[str, Any]]:
    from sdp_compile.bench.one_of.worker import measured

    torch.set_num_threads(1)
    settings = OneOfSettings(4, MODEL, "cpu", batch=6, rounds=1, steps=1, warmup=2)
    names = (*NAMES, "local", "sdp-backward-neuron-sharded")
    return {name: measured(settings, VARIANTS[name], 0.5 if VARIANTS[name].kind == "sdp" else None) for name in names}


def test_one_worker_trains_without_its_peers() -> None:
    found = alone(every_variant)
    memory = {name: figures["memory"] for name, figures in found.items()}
    dense = sum(parameter.nbytes for parameter in Residual().parameters())
    assert memory["ddp"]["parameters"] == memory["local"]["parameters"] == dense
    for name, figures in found.items():
        phases = memory[name]["phases"]
        assert memory[name]["peak"] == max(phases.values()) > memory[name]["parameters"]
        assert all(seconds > 0 for seconds in figures["phase_seconds"].values())
        assert all(calls > 0 for calls in figures["phase_calls"].values())
        assert all(loss is not None for loss in figures["losses"]), name
    # Without gradients from peers, DDP takes a quarter of each gradient; AdamW does not see the factor.
    assert found["ddp"]["losses"][0] == pytest.approx(found["local"]["losses"][0], rel=1e-6)
    assert found["sdp-backward-neuron"]["losses"][0] == pytest.approx(found["ddp"]["losses"][0], rel=1e-5)
    assert memory["sdp-neuron"]["peak"] < memory["ddp"]["peak"]
    assert memory["sdp-neuron-sharded"]["optimizer"] < memory["sdp-neuron"]["optimizer"] < memory["ddp"]["optimizer"]
    assert memory["fsdp2"]["parameters"] < dense / 2


def compiled_with_small_buckets() -> dict[str, Any]:
    from sdp_compile.bench.one_of.worker import measured

    settings = OneOfSettings(4, MODEL, "cpu", batch=6, rounds=1, steps=1, warmup=1, bucket_bytes=1000)
    return measured(settings, VARIANTS["ddp+compile"], None)


def test_that_compiled_ddp_has_buckets_of_any_size() -> None:
    assert alone(compiled_with_small_buckets)["status"] == "ok"


def test_rows_are_made_one_by_one_and_compared_with_ddp(tmp_path: Path) -> None:
    settings = OneOfSettings(4, MODEL, "cpu", batch=6, rounds=1, steps=1, warmup=1, compile=False)
    settings = replace(settings, coverages=(1.0, 0.5), variants=("ddp", "sdp-neuron"), links=("nvlink", "10gbe"))
    seen: list[int] = []
    result = run(settings, lambda _: None, lambda so_far: seen.append(len(so_far["variants"])))
    assert seen == [1, 2, 3]
    rows = {(row["name"], row["coverage"]): row for row in result["variants"]}
    assert rows["ddp", None]["of_ddp"] == {"peak": 1.0, "step": 1.0}
    whole, half = rows["sdp-neuron", 1.0], rows["sdp-neuron", 0.5]
    # The owners' comparison during the update takes more memory than a model as small as this one.
    assert half["memory"]["phases"]["backward"] < whole["memory"]["phases"]["backward"]
    assert half["of_ddp"]["peak"] == half["memory"]["peak"] / rows["ddp", None]["memory"]["peak"]
    assert half["memory"]["parameters"] < whole["memory"]["parameters"] == rows["ddp", None]["memory"]["parameters"]
    predict(result, settings)
    write_memory_plot(result, str(tmp_path / "memory.svg"))
    assert "one worker of 4" in (tmp_path / "memory.svg").read_text()


def predict(result: dict[str, Any], settings: OneOfSettings) -> None:
    """The traffic is that of the algorithms: DDP sends 2 (n-1)/n of all gradients; slow links take longer."""
    from sdp_compile.bench.one_of.predicted import add_predictions

    add_predictions(result, settings)
    gradients = sum(parameter.nbytes for parameter in Residual().parameters())
    for row in result["variants"]:
        fast, slow = row["predicted"]["nvlink"], row["predicted"]["10gbe"]
        assert fast["communication"] < slow["communication"]
        assert slow["step"] == row["step_seconds"]["median"] + slow["exposed"]
    assert result["variants"][0]["predicted"]["nvlink"]["sent"] == pytest.approx(2 * 3 / 4 * gradients)
    assert result["variants"][2]["predicted"]["nvlink"]["sent"] < 2 * 3 / 4 * gradients


def test_a_variant_that_fails_says_why() -> None:
    settings = OneOfSettings(2, "torch.nn:Flatten", "cpu", inputs=("4x3x2",), variants=("sdp-block",), compile=False)
    (row,) = run(settings, lambda _: None, lambda _: None)["variants"]
    assert row["status"] == "failed"
    assert "no residual blocks" in row["reason"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"one_of": 1}, "--one-of 1"),
        ({"dtype": "bfloat61"}, "bfloat16"),
        ({"links": ("nvlnk",)}, "nvlink"),
        ({"coverages": (0.5, 1.5)}, "1.5"),
        ({"coverages": ()}, "--coverages"),
        ({"model": "llama-134"}, "llama-134m"),
        ({"model": "llama-134m", "inputs": ("2x3",)}, "fixed size"),
        ({"model": "resnet-50", "length": 128}, "--length 128"),
        ({"variants": ("sdp-newron",)}, "sdp-neuron"),
    ],
)
def test_wrong_words_are_refused_before_any_work(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((SDPError, PolicyError), match=words):
        OneOfSettings(**{"one_of": 4, **fields})


def test_settings_survive_the_way_to_the_process() -> None:
    settings = OneOfSettings(8, "llama-134m", dtype="bfloat16", length=64, coverages=(1.0, 0.5), variants=("sdp-*",))
    assert OneOfSettings.loads(settings.dumps()) == settings
    assert json.loads(settings.dumps())["one_of"] == 8


SIZES = {"gpt2-124m": 124.4, "gpt2-350m": 354.8, "llama-134m": 134.1, "llama-500m": 498, "llama-1b": 1041}


@pytest.mark.parametrize(("model", "millions"), SIZES.items())
def test_models_have_the_sizes_that_they_are_named_for(model: str, millions: float) -> None:
    from sdp_compile.bench.one_of.models import make_one_of_work

    work = make_one_of_work(OneOfSettings(8, model, batch=2), torch.device("meta"))
    assert sum(parameter.numel() for parameter in work.model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
    assert work.tokens == 2 * 1024
