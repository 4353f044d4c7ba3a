"""What capture answers otherwise than eager execution is refused by line, or answered as there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sdp_compile.capture import capture
from sdp_compile.errors import CaptureError
from tests.capture.models import run


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> Any:
        h = self.layer(x)
        return h * 2 if self.asks(h) else h

    def asks(self, h: torch.Tensor) -> bool:
        return torch._dynamo.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()  # type: ignore[no-any-return]


class Fake(Asking):
    def asks(self, h: torch.Tensor) -> bool:
        return isinstance(h, FakeTensor)


class Type(Asking):
    def asks(self, h: torch.Tensor) -> bool:
        return type(h) is torch.Tensor


class Types(Asking):
    def asks(self, h: torch.Tensor) -> bool:
        return isinstance(h, torch.Tensor) and type(self) is Types


@pytest.mark.parametrize("kind", [Asking, Types])
def test_questions_about_compilers_get_the_answer_of_eager_execution(kind: type[Asking]) -> None:
    model, x = kind(), torch.randn(4, 5)
    torch.testing.assert_close(run(model, capture(model, x), "train", x), model(x))


@pytest.mark.parametrize(("kind", "words"), [(Fake, "is a FakeTensor"), (Type, r"type\(\) of a tensor")])
def test_questions_that_cannot_be_answered_are_refused_by_line(kind: type[Asking], words: str) -> None:
    with pytest.raises(CaptureError, match=rf"asks .*{words} at .*test_questions.py:\d+: .* isinstance"):
        capture(kind(), torch.randn(4, 5))


def test_masks_that_eager_execution_leaves_out_are_refused_if_the_layer_is_not_causal() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"input_ids": torch.randint(0, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}

    def made(implementation: str) -> nn.Module:
        config = transformers.Aimv2TextConfig(
            **sizes, vocab_size=20, max_position_embeddings=8, eos_token_id=1, attn_implementation=implementation
        )
        model: nn.Module = transformers.Aimv2TextModel(config).eval()
        return model

    with pytest.raises(CaptureError, match=r"only if a row of attention_mask is padded, at .*_attn_implementation"):
        capture(made("sdpa"), ids)
    capture(made("eager"), ids)
    causal = transformers.CLIPTextConfig(**sizes, vocab_size=20, max_position_embeddings=8, attn_implementation="sdpa")
    capture(transformers.CLIPTextModel(causal), ids)


def test_masks_that_eager_execution_makes_for_packed_rows_alone_are_refused_if_the_layer_is_not_causal() -> None:
    """PaliGemma's layers are not causal, and its masks come of positions that it counts itself."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = torch.randint(0, 20, (2, 6))

    def made(bidirectional: bool, implementation: str = "sdpa") -> nn.Module:
        config = transformers.GemmaConfig(
            **sizes,
            vocab_size=20,
            head_dim=8,
            num_key_value_heads=2,
            use_cache=False,
            use_bidirectional_attention=bidirectional,
            attn_implementation=implementation,
        )
        model: nn.Module = transformers.GemmaModel(config).eval()
        return model

    with pytest.raises(CaptureError, match=r"only if position_ids start anew within a row, at .*_attn_implementation"):
        capture(made(True), {"input_ids": ids})
    for model in (made(False), made(True, "eager")):
        found = run(model, capture(model, {"input_ids": ids}), "eval", ids)
        torch.testing.assert_close(found.last_hidden_state, model(input_ids=ids).last_hidden_state)
