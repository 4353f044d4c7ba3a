"""Example inputs of transformers models: tokens, images, clips, waveforms or spectrograms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.models.configuration import Size

LONGEST = 1024
"""Tokens per sample with the published configuration, where the model's context is not shorter."""

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_SECONDS = 10  # of sound, at 16,000 samples and 100 spectra per second


def example_inputs(model: nn.Module, config: Any, size: Size = "small") -> dict[str, Tensor]:
    """Returns a batch of two for the model's main input, by keyword; encoder-decoders also get decoder tokens."""
    generator = torch.Generator().manual_seed(0)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def tokens(small: int) -> Tensor:
        length = small if size == "small" else _context(text)
        vocabulary = int(getattr(text, "vocab_size", None) or 128)
        return torch.randint(3, vocabulary, (2, length), generator=generator)

    main = str(getattr(model, "main_input_name", "input_ids"))
    inputs: dict[str, Tensor] = {}
    if main == "pixel_values":
        inputs[main] = torch.randn(_image_shape(config, size), generator=generator)
    elif main == "input_values":
        samples = 4000 if size == "small" else _SECONDS * 16_000
        bands = getattr(config, "num_mel_bins", None)
        inputs[main] = torch.randn((2, config.max_length, bands) if bands else (2, samples), generator=generator)
    elif main == "input_features":
        inputs[main] = torch.randn(_spectrogram_shape(config, size), generator=generator)
    elif main in ("pixel_values_videos", "video"):
        shape = (2, 4, 3, 64, 64) if size == "small" else _image_shape(config, size)
        inputs[main] = torch.randn(shape, generator=generator)
    else:
        inputs[main] = tokens(16)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens(8)
        if main == "input_ids":
            inputs["attention_mask"] = torch.ones_like(inputs[main])  # some encoders cannot do without
    return inputs


def _context(text: Any) -> int:
    """Returns the model's context length, at most `LONGEST`, rounded down: RoBERTa counts 2 positions more."""
    lengths = [getattr(text, name, None) for name in ("max_target_positions", *_CONTEXT)]
    length = next((value for value in lengths if isinstance(value, int) and value > 0), LONGEST)
    return max(8, min(length, LONGEST) // 64 * 64)


def _image_shape(config: Any, size: Size) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", config)
    own = getattr(vision, "image_size", None) or getattr(vision, "crop_size", None)
    side = own or (64 if size == "small" else 224)  # convolutional models take any, and are published for 224
    height, width = (side, side) if isinstance(side, int) else (side[0], side[1])
    shape = (int(getattr(vision, "num_channels", 3) or 3), int(height), int(width))
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    return (2, int(frames), *shape) if frames else (2, *shape)


def _spectrogram_shape(config: Any, size: Size) -> tuple[int, ...]:
    if hasattr(config, "num_mel_bins"):  # as whisper takes it
        return (2, int(config.num_mel_bins), 2 * int(getattr(config, "max_source_positions", 32)))
    bands = int(getattr(config, "input_feat_per_channel", getattr(config, "feature_projection_input_dim", 80)))
    return (2, 64 if size == "small" else _SECONDS * 100, bands)
