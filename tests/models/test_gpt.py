"""The GPT of the main job, against counts by hand."""

import torch

from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.train.loop import cross_entropy


def test_the_default_gpt() -> None:
    """6 layers, width 256, 8 heads, hidden 1024, 256 bytes, 128 positions: counted by hand."""
    model = GPT(GPTConfig())
    layer = 2 * 2 * 256 + (256 * 768 + 768) + (256 * 256 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6 * layer + (256 + 128 + 256) * 256 + 2 * 256
    tokens = torch.randint(256, (3, 128))
    logits = model(tokens)
    assert logits.shape == (3, 128, 256)
    assert abs(cross_entropy(logits, tokens).item() - torch.tensor(256.0).log().item()) < 0.3


def test_the_gpt_is_causal() -> None:
    model = GPT(GPTConfig(layers=2))
    tokens = torch.randint(256, (1, 20))
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not torch.allclose(before[:, 12], after[:, 12], atol=1e-5)
