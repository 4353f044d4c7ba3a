"""``sdp-compile check``: every form of MODEL, clean refusals, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdp_compile.cli.main import app
from tests.cli.test_main import command

pytestmark = pytest.mark.timeout(120)

SOURCE = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6))

def pair():
    return mlp(), (torch.randn(4, 6),)

def softmax():
    return nn.Sequential(nn.Linear(6, 16), nn.Softmax(-1), nn.Linear(16, 6)), (torch.randn(4, 6),)

def raising():
    raise ValueError("no weights today")

def number():
    return 3

constant = 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "user_models.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_factory_in_a_file(models: Path) -> None:
    code, out, _ = run(f"{models}:pair", "--workers", "2")
    assert code == 0
    assert "exact" in out and "What is cut" in out


def test_a_factory_in_a_module_with_inputs_and_json(models: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    code, *_ = run("user_models:mlp", "--input", "4x6", "--rank", "1", "--policy", "neuron", "--json", str(target))
    report = json.loads(target.read_text())
    assert (code, report["verdict"], report["ranks"], report["axes_cut"]) == (0, "exact", [1], 1)


def test_json_on_standard_output_stands_alone(models: Path) -> None:
    code, out, _ = run(f"{models}:pair", "--json", "-", "--rank", "0")
    assert code == 0 and json.loads(out)["verdict"] == "exact"


def test_transformers_with_changed_configuration() -> None:
    pytest.importorskip("transformers")
    code, out, _ = run("transformers:gpt2", "--set", "n_layer=1", "--rank", "0", "--json", "-")
    report = json.loads(out)
    assert (code, report["verdict"], report["model"]) == (0, "exact", "GPT2LMHeadModel")
    assert (report["configuration"]["origin"], report["configuration"]["changes"]) == ("small", ["n_layer=1"])
    assert not any(".h.1." in family["name"] for family in report["families"])


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"])
def test_vision_libraries(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    code, out, _ = run(spec, "--rank", "0", "--policy", "neuron", "--json", "-")
    assert (code, json.loads(out)["verdict"]) == (0, "exact")


def test_the_published_configuration_is_checked_on_request() -> None:
    """SqueezeNet 1.1 has 1,235,496 parameters: small enough for a test."""
    pytest.importorskip("torchvision")
    code, out, error = run("torchvision:squeezenet1_1", "--full", "--rank", "0", "--policy", "neuron", "--json", "-")
    assert (code, json.loads(out)["configuration"]["origin"]) == (0, "published")
    assert "1,235,496 parameters" in error and "needs about 37.7 MiB of memory" in error and "float64" in error


def test_a_published_model_that_is_too_large_is_planned_without_its_weights() -> None:
    pytest.importorskip("torchvision")
    code, out, error = run("torchvision:vit_l_32", "--full", "--rank", "0", "--policy", "neuron", "--json", "-")
    report = json.loads(out)
    assert (code, report["verdict"], report["parameters"]) == (2, "unverified", 306_535_400)
    assert "needs about 9.1 GiB of memory" in error


def test_a_model_with_nothing_to_cut_is_refused(models: Path) -> None:
    code, out, _ = run(f"{models}:softmax", "--policy", "neuron")
    assert code == 2
    assert "refused (plan)" in out and "softmax" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODELS:mlp"], ["--input", "forward(input)"]),
        (["MODELS:raising"], ["ValueError: no weights today", "raise ValueError"]),
        (["MODELS:rasing"], ["Did you mean 'raising'"]),
        (["MODELS:constant"], ["is int"]),
        (["MODELS:number"], ["returned int", "torch.nn.Module"]),
        (["no_such_package.models:make"], ["no_such_package"]),
        (["torchvision:resnt18"], ["resnet18"]),
        (["torchvision:fasterrcnn_resnet50_fpn"], ["detection"]),
        (["timm:resnet18x"], ["resnet18"]),
        (["transformers:lama"], ["llama"]),
        (["transformers:llama", "--set", "hiden_size=3"], ["hidden_size"]),
    ],
)
def test_what_cannot_be_built_is_said_in_one_message(models: Path, arguments: list[str], words: list[str]) -> None:
    code, _, error = run(*[argument.replace("MODELS", str(models)) for argument in arguments])
    assert code == 2
    assert all(word in error for word in words), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MODEL", "--zoo"]),
        (["a:b", "--zoo", "timm"], ["MODEL", "--zoo"]),
        (["--zoo", "tim"], ["torchvision", "timm", "transformers"]),
        (["--zoo", "timm", "--input", "2x3"], ["--input", "--zoo"]),
        (["resnet18"], ["resnet18", "torchvision:NAME"]),
        (["missing.py:make"], ["missing.py", "no such file"]),
        (["a:b", "--input", "2x"], ["--input 2x", "SHAPE"]),
        (["a:b", "--input", "2x3:flot32"], ["float32"]),
        (["a:b", "--set", "x=1"], ["--set x=1"]),
        (["transformers:llama", "--set", "x"], ["key=value"]),
        (["a:b", "--rank", "9"], ["--rank 9"]),
        (["a:b", "--coverage", "0"], ["coverage=0"]),
        (["a:b", "--policy", "missing.toml"], ["missing.toml"]),
        (["a:b", "--json", "/no/such/folder/x.json"], ["--json"]),
    ],
)
def test_bad_words_are_refused_without_torch(arguments: list[str], words: list[str]) -> None:
    result = command("check", *arguments)
    assert result.returncode == 2, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "torch was imported" not in result.stderr and "Traceback" not in result.stderr


def test_help_states_the_exit_codes_without_torch() -> None:
    result = command("check", "--help")
    assert result.returncode == 0 and "torch was imported" not in result.stderr
    assert "Exit codes" in result.stdout
