"""The recipe for LLaMA, on small shards of text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from tests.recipes.running import forget, logged, part, trained
from tests.recipes.texts import DOCUMENTS, write_texts

pytestmark = pytest.mark.timeout(500)

SIZES = {"134m": 134.1e6, "500m": 498e6, "1b": 1041e6}
OPTIONS = (
    "--model tiny --steps 6 --every 4 --log-every 1 --length 32 --batch 8 --held-out 10 --schedule growing".split()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def validation_loss(model: LlamaForCausalLM, tokenizer: Tokenizer) -> float:
    """The mean over the held-out documents, by transformers' own loss."""
    end = tokenizer.token_to_id("</s>")
    tokens = torch.tensor([token for text in DOCUMENTS[:10] for token in [*tokenizer.encode(text).ids, end]])
    sequences = tokens[: len(tokens) // 33 * 33].view(-1, 33)
    with torch.no_grad():
        return float(torch.stack([model(input_ids=one[None], labels=one[None]).loss for one in sequences]).mean())


def test_that_two_workers_go_on_with_the_same_tokens_and_then_one_alone(folder: Path, tmp_path: Path) -> None:
    run, tokenizer = tmp_path / "run", folder / "tokenizer.json"
    command = ["llama.py", folder / "parquet", run, "--tokenizer", tokenizer, *OPTIONS, "--micro", "3"]
    trained(*command, "--logger", "tensorboard")
    assert list(run.glob("events.out.tfevents.*"))
    expected, whole = LlamaForCausalLM.from_pretrained(run / "model"), logged(run, "tokens_per_second")
    steps = [(line["step"], "validation" in line) for line in whole]
    assert steps == [(1, False), (2, False), (3, False), (4, False), (4, True), (5, False), (6, False), (6, True)]
    assert whole[-1]["validation"] < whole[0]["loss"]
    assert whole[-1]["validation"] == pytest.approx(validation_loss(expected, Tokenizer.from_file(str(tokenizer))))

    forget(run, 6)
    trained(*command)
    assert logged(run, "tokens_per_second") == whole + whole[-3:]
    found = LlamaForCausalLM.from_pretrained(run / "model").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())

    printed = trained(*command, "--steps", "8", workers=None)
    assert "step 8: validation loss" in printed
    assert [line["step"] for line in logged(run)][-3:] == [7, 8, 8]


def test_that_the_hub_and_files_give_the_same(folder: Path, tmp_path: Path) -> None:
    """One process, so that both read the documents in the same order; micro-batches change nothing."""
    logs = []
    for number, (data, micro) in enumerate([(folder / "jsonl", "8"), (f"hf:{folder / 'parquet'}", "5")]):
        run = tmp_path / str(number)
        options = ["--tokenizer", folder / "tokenizer.json", *OPTIONS, "--micro", micro, "--schedule", "neuron"]
        trained("llama.py", data, run, *options, workers=None)
        logs.append(logged(run, "tokens_per_second"))
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_that_two_workers_stream_and_go_on(folder: Path, tmp_path: Path) -> None:
    options = ["--tokenizer", folder / "tokenizer.json", *OPTIONS, "--schedule", "neuron"]
    command = ["llama.py", f"hf:{folder / 'parquet'}", tmp_path, *options]
    trained(*command)
    whole = logged(tmp_path, "tokens_per_second")
    forget(tmp_path, 6)
    trained(*command)
    assert logged(tmp_path, "tokens_per_second") == whole + whole[-3:]


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_models(name: str) -> None:
    with torch.device("meta"):
        model = part("llama").build(name, 32_000, 2, 1024)
    assert sum(one.numel() for one in model.parameters()) == pytest.approx(SIZES[name], rel=0.002)
