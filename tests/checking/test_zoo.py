"""One or two models of each kind from popular libraries: verified, or at least captured, analysed and planned.

``sdp-compile check --zoo LIBRARY`` checks all models of a library.
"""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from torch import nn

from sdp_compile import NeuronPolicy, check
from sdp_compile.capture import capture
from sdp_compile.capture.clone import clone, to_meta
from sdp_compile.models.zoo import build, models_of
from sdp_compile.planning.making import make_plan
from sdp_compile.runtime.module import programs
from sdp_compile.structure.analysis import analyse

pytestmark = pytest.mark.timeout(240)

EXACT = (
    "torchvision:shufflenet_v2_x0_5",  # channel shuffle
    "torchvision:lraspp_mobilenet_v3_large",  # segmentation: a dict of outputs, interpolation
    "timm:ghostnet_050",
    "transformers:t5",  # an encoder and a decoder, relative positions
    "transformers:mixtral",  # experts
    "transformers:whisper",
    "transformers:mamba",
    "transformers:layoutlm",
)

PLANNED = (
    "torchvision:r3d_18",
    "torchvision:googlenet",
    "timm:resnest14d",
    "timm:convit_tiny",
    "timm:levit_128",
    "timm:nf_regnet_b0",
    "transformers:bart",
    "transformers:gpt_neo",
    "transformers:wav2vec2",
)
"""Models that are captured and planned on the meta device, without weights."""


@pytest.mark.parametrize("name", EXACT)
def test_a_model_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def recapture(*_arguments: object) -> NoReturn:
        raise AssertionError("the graphs are not right for the calls of the check")

    monkeypatch.setattr(programs, "recapture", recapture)
    model, inputs = build(name)
    result = check(model, NeuronPolicy(coverage=0.5), inputs, workers=4, ranks=(0, 1))
    assert result.verdict == "exact", result.reason
    assert result.axes_cut and result.coverage == 0.5
    assert {one.mode for one in result.comparisons} == {"train", "eval"}


def test_every_dimension_may_be_cut() -> None:
    model, inputs = build("torchvision:resnet18")
    policy = NeuronPolicy(axes="all", scope="all", replicas=3)
    result = check(model, policy, inputs, workers=4, ranks=(0, 3))
    assert result.verdict == "exact" and result.axes_cut == result.axes


@pytest.mark.parametrize("name", PLANNED)
def test_a_model_without_weights_is_planned(name: str) -> None:
    model, inputs = build(name)
    model = clone(model, _weightless)
    analysis = analyse(capture(model, inputs))
    plan = make_plan(analysis, NeuronPolicy(coverage=0.5), 4)
    dense, mine = plan.memory().parameters, plan.memory(0).parameters
    assert 0.5 * dense <= mine <= 0.8 * dense
    assert plan.coverage().min > 0  # every element has an owner


def _weightless(tensor: torch.Tensor) -> torch.Tensor:
    return to_meta(tensor) if isinstance(tensor, nn.Parameter) else tensor


def test_the_lists_are_long_enough() -> None:
    assert len(models_of("timm")) >= 120 and len(models_of("transformers")) >= 40
