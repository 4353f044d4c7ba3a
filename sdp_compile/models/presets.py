"""Language models of known sizes, by short names: a MODEL with its settings and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What a name stands for.

    Attributes:
        model: The MODEL.
        source: The checkpoint that has these sizes.
        settings: Its ``--set`` options.
        inputs: Its ``--input`` options.
    """

    model: str
    source: str = ""
    settings: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("input_ids=2x1024:int64",)


def _llama(source: str, width: int, layers: int, heads: int, hidden: int, tied: bool = False) -> Preset:
    """A Llama 3, with 8 heads of keys and values and 128,256 tokens."""
    fields = {
        "vocab_size": 128_256,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": tied,
    }
    return Preset(
        "transformers:llama", f"meta-llama/{source}", tuple(f"{name}={value}" for name, value in fields.items())
    )


PRESETS: Mapping[str, Preset] = {
    "gpt2-124m": Preset("transformers:gpt2", "openai-community/gpt2"),
    "llama-1b": _llama("Llama-3.2-1B", 2048, 16, 32, 8192, tied=True),
    "llama-8b": _llama("Llama-3.1-8B", 4096, 32, 32, 14_336),
    "llama-70b": _llama("Llama-3.1-70B", 8192, 80, 64, 28_672),
}
"""Sizes: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); "The Llama 3 Herd of Models"
(arXiv 2407.21783), table 3; and for 1B the configuration of the
checkpoint.
"""
