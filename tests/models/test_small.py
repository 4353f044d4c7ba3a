"""Small configurations of transformers types build models that run, also of types whose sizes depend on each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from sdp_compile.models.small import small_fields  # noqa: E402
from sdp_compile.models.transformers_config import default_config  # noqa: E402

KINDS = {
    "deepseek_v3": "DeepseekV3Model",  # latent attention
    "glm4v_text": "Glm4vTextModel",  # rotations in three sections
    "ministral": "MinistralModel",  # no default for the size of heads
    "qwen2_5_vl": "Qwen2_5_VLModel",  # kinds of layers in an inner configuration
    "xmod": "XmodModel",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_model_runs(kind: str) -> None:
    config, _origin = default_config(kind, "small", ())
    model = getattr(transformers, KINDS[kind])(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    model(input_ids=torch.randint(3, 64, (2, 8)))


def test_an_inner_configuration_keeps_what_the_outer_one_sets() -> None:
    config: Any = transformers.DetrConfig()
    fields = small_fields(config)["backbone_config"]
    assert fields["backbone"] == config.backbone_config.backbone is not None


def test_lists_of_one_value_per_layer_are_not_kept() -> None:
    config: Any = transformers.Qwen2_5_VLConfig()
    assert "layer_types" not in small_fields(config)["text_config"]
