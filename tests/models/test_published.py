"""A name stands for the model that people know by it: parameters as its publisher counts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdp_compile.errors import SDPError
from sdp_compile.models.configuration import count_parameters
from sdp_compile.models.spec import load
from sdp_compile.models.words import check_words, parse_model

pytestmark = pytest.mark.timeout(240)

PARAMETERS = {
    "transformers:gpt2": 124_439_808,
    "transformers:bert": 109_514_298,
    "transformers:roberta": 124_697_433,
    "transformers:xlm-roberta": 278_295_186,
    "transformers:bloom": 559_214_592,
    "transformers:llama": 6_738_415_616,
    "transformers:mistral": 7_241_732_096,
    "transformers:qwen2": 7_615_616_512,
    "transformers:qwen3": 8_190_735_360,
    "transformers:qwen3_moe": 30_532_122_624,
    "transformers:olmo2": 7_298_617_344,
    "transformers:olmoe": 6_919_161_856,
    "transformers:gemma3_text": 999_885_952,
    "transformers:gpt_bigcode": 1_124_886_528,
    "transformers:mpt": 6_649_286_656,
    "transformers:mamba": 129_135_360,
    "transformers:vit": 86_567_656,
    "transformers:resnet": 25_557_032,
    "torchvision:resnet18": 11_689_512,
    "torchvision:vit_b_16": 86_567_656,
    "torchvision:vit_h_14": 632_045_800,
    "torchvision:convnext_tiny": 28_589_128,
    "timm:resnet18": 11_689_512,
}
"""From the model cards on the Hugging Face hub and torchvision's table of weights (``num_params``)."""


@pytest.mark.parametrize("spec", PARAMETERS)
def test_parameters_are_the_published_ones_without_memory(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    loaded = load(spec, weights=False)
    assert count_parameters(loaded.model) == PARAMETERS[spec]
    assert loaded.configuration.origin == "published" and not loaded.configuration.notes
    assert all(tensor.is_meta for tensor in (*loaded.model.parameters(), *loaded.model.buffers()))
    assert loaded.describe(spec).startswith(f"{spec}, published configuration, {PARAMETERS[spec]:,} parameters")


def test_inputs_are_of_the_published_size() -> None:
    pytest.importorskip("transformers")
    shapes: dict[str, Any] = {
        "transformers:gpt2": [("input_ids", (2, 1024))],
        "transformers:roberta": [("input_ids", (2, 512))],
        "transformers:vit": [("pixel_values", (2, 3, 224, 224))],
        "torchvision:vit_h_14": [("", (2, 3, 224, 224))],
        "torchvision:efficientnet_b1": [("", (2, 3, 240, 240))],
        "torchvision:fcn_resnet50": [("", (2, 3, 520, 520))],
        "torchvision:r3d_18": [("", (2, 3, 16, 112, 112))],
        "timm:inception_v3": [("", (2, 3, 299, 299))],
    }
    for spec, expected in shapes.items():
        inputs = load(spec, weights=False).to_dict()["inputs"]
        assert [(one["name"] or "", tuple(one["shape"])) for one in inputs] == expected, spec


def test_the_small_configuration_has_weights_and_says_so() -> None:
    pytest.importorskip("transformers")
    loaded = load("transformers:gpt2")
    assert loaded.describe("transformers:gpt2").startswith("transformers:gpt2, small configuration, 99,968 parameters")
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())


def test_overrides_apply_to_both_sizes() -> None:
    pytest.importorskip("transformers")
    for size, layer in (("small", 41_728), ("full", 7_087_872)):
        one, two = (
            load("transformers:gpt2", (), (f"num_hidden_layers={n}",), size, weights=False)  # type: ignore[arg-type]
            for n in (1, 2)
        )
        assert count_parameters(two.model) - count_parameters(one.model) == layer
        assert "with num_hidden_layers=2" in two.configuration.describe()


def test_a_type_without_a_known_checkpoint_is_called_default() -> None:
    pytest.importorskip("transformers")
    loaded = load("transformers:sew", weights=False)
    assert loaded.configuration.origin == "default" and loaded.configuration.source == "SEWConfig"
    assert "default configuration" in loaded.describe("transformers:sew")


def test_a_constructor_that_reads_values_gets_weights_and_a_note() -> None:
    pytest.importorskip("torchvision")
    loaded = load("torchvision:regnet_y_400mf", weights=False)
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())
    assert not loaded.example_inputs[0].is_meta
    (note,) = loaded.configuration.notes
    assert "meta" in note and "real weights" in note


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` leaves it, with one value per layer among the fields."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        hidden_size=96, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2, head_dim=16, vocab_size=160
    )
    fields = {**config.to_dict(), "architectures": ["Qwen3ForTokenClassification"]}
    assert len(fields["layer_types"]) == 6
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return tmp_path


@pytest.mark.parametrize("file", [False, True])
def test_a_folder_and_a_config_json(folder: Path, file: bool) -> None:
    spec = str(folder / "config.json") if file else f"{folder}/"
    loaded = load(spec, weights=False)
    assert type(loaded.model).__name__ == "Qwen3ForTokenClassification"
    assert loaded.model.config.num_hidden_layers == 6  # type: ignore[union-attr]
    assert loaded.configuration.origin == "file" and loaded.configuration.source == str(folder / "config.json")
    changed = load(spec, (), ("num_hidden_layers=3", "hidden_size=48"), "full", weights=False)
    assert changed.model.config.layer_types == ["full_attention"] * 3  # type: ignore[union-attr]
    small = load(spec)
    assert small.configuration.origin == "small"
    assert small.model.config.num_hidden_layers == 2  # type: ignore[union-attr]
    small.model(**small.example_inputs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["config.json", "JSON"]),
        ("[]", ["model_type"]),
        ('{"model_type": "lama"}', ["lama", "llama", "factory"]),
    ],
)
def test_a_file_that_holds_no_configuration(content: str, words: list[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SDPError) as error:
        load(str(tmp_path))
    assert all(word in str(error.value) for word in words), error.value


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SDPError, match=r"HF_HUB_OFFLINE is set.*config\.json"):
        load("transformers:no-such-organisation/no-such-model", weights=False)

    def unreachable(name: str) -> None:
        raise OSError(f"We couldn't connect to the hub to load {name}.")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(SDPError, match=r"couldn't connect.*transformers:gpt2"):
        load("transformers:no-such-organisation/no-such-model", weights=False)


def test_a_hub_name_gives_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=24, n_embd=1024, n_head=16, architectures=["GPT2LMHeadModel"])
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name: config)
    loaded = load("transformers:openai-community/gpt2-medium", weights=False)
    assert count_parameters(loaded.model) == 354_823_168
    assert loaded.configuration.source == "openai-community/gpt2-medium"
    small = load("transformers:openai-community/gpt2-medium")
    assert count_parameters(small.model) == 99_968 and small.configuration.origin == "small"


def test_words_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert parse_model(str(tmp_path)).kind == "file"
    assert parse_model("transformers:org/name").name == "org/name"
    assert parse_model("torch.nn:Identity").kind == "factory"
    with pytest.raises(SDPError, match=r"there is no file .*config\.json"):
        parse_model(str(tmp_path / "config.json" / "x.json"))
    with pytest.raises(SDPError, match="--full chooses a configuration by name"):
        check_words("torch.nn:Identity", size="full")


def test_settings_of_a_factory_are_refused() -> None:
    with pytest.raises(SDPError, match="--set n_layer=2"):
        check_words("torch.nn:Identity", settings=["n_layer=2"])


def test_inputs_given_in_words_follow_the_model() -> None:
    pytest.importorskip("torchvision")
    loaded = load("torchvision:resnet18", ["4x3x96x96"], weights=False)
    (images,) = loaded.example_inputs
    assert images.device == torch.device("meta") and images.shape == (4, 3, 96, 96)
