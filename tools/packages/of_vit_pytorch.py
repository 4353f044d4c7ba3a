"""vit-pytorch: every class that makes a model from sizes, all of them small."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import torch
from torch import nn

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("dim", "dim_head", "sm_dim", "dim_action"), 32),
    **dict.fromkeys(("mlp_dim", "lg_dim"), 64),
    **dict.fromkeys(("depth", "cls_depth", "heads", "spatial_depth", "temporal_depth", "mlp_mult"), 2),
    **dict.fromkeys(("image_size", "seq_len", "img_size"), 32),
    **dict.fromkeys(("patch_size", "image_patch_size"), 8),
    **dict.fromkeys(("frames", "max_frames", "num_residual_streams", "num_slots", "freq_patch_size"), 4),
    "frame_patch_size": 2,
    "num_classes": 10,
    "max_tokens_per_depth": (8, 4),
    "ndim": 2,
    "input_shape": (32, 32),
    "window_size": 4,
    "reduction_factor": (2, 1),
}
"""Small values of the parameters without a default, by name."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "cct.CCT": {"img_size": 32, "embedding_dim": 32, "num_layers": 2, "num_heads": 2, "num_classes": 10},
    "cct_3d.CCT": {
        "num_frames": 8,
        "img_size": 32,
        "embedding_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_classes": 10,
    },
    "cross_vit.CrossViT": {"image_size": 48, "sm_patch_size": 12, "lg_patch_size": 16, "depth": 1, "lg_enc_depth": 1},
    "crossformer.CrossFormer": {
        "dim": (64, 64, 64, 64),
        "depth": (1, 1, 1, 1),
        "local_window_size": 2,
        "global_window_size": (2, 1, 1, 1),
        "num_classes": 10,
    },
    "cvt.CvT": {"s1_emb_dim": 16, "s2_emb_dim": 24, "s2_depth": 1, "s3_emb_dim": 32, "s3_heads": 2, "s3_depth": 1},
    "looped_vit.LoopedViT": {"image_size": 32, "patch_size": 8, "pre_loop_depth": 1, "num_looped_blocks": 1},
    "levit.LeViT": {"image_size": 64, "stages": 3, "dim": (32, 48, 64), "depth": 1, "heads": (2, 2, 2)},
    "max_vit.MaxViT": {"dim": 16, "depth": (1, 1), "dim_conv_stem": 16, "dim_head": 16},
    "max_vit_with_registers.MaxViT": {"dim": 16, "depth": (1, 1), "dim_conv_stem": 16, "dim_head": 16},
    "mobile_vit.MobileViT": {
        "image_size": (64, 64),
        "dims": (32, 48, 64),
        "channels": (8, 16, 16, 16, 24, 24, 32, 32, 40, 40, 64),
    },
    "nest.NesT": {"num_hierarchies": 2, "block_repeats": (1, 1), "heads": 2, "patch_size": 4},
    "pit.PiT": {"depth": (1, 1)},
    "regionvit.RegionViT": {"dim": (16, 32, 32, 64), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 10},
    "scalable_vit.ScalableViT": {"depth": (1, 1), "heads": (2, 2), "window_size": (4, None)},
    "sep_vit.SepViT": {"dim": 16, "depth": (1, 1), "heads": (2, 2), "window_size": 4},
    "t2t.T2TViT": {"depth": 1, "heads": 2, "mlp_dim": 64},
    "twins_svt.TwinsSVT": {"s1_emb_dim": 16, "s2_emb_dim": 24, "s3_emb_dim": 32, "s3_depth": 1, "s4_emb_dim": 32},
    "xcit.XCiT": {"heads": 2},
}
"""Parameters of some classes whose sizes depend on each other."""

_INPUTS = (
    (2, 3, 32, 32),
    (2, 3, 4, 32, 32),
    (2, 3, 32),
    (2, 3, 64, 64),
    (2, 3, 48, 48),
    (2, 3, 56, 56),
    (2, 3, 8, 32, 32),
    (2, 3, 224, 224),
)
"""Images, clips and series; the first that the model takes is used."""


def names(_seed: int) -> list[str]:
    """Returns ``FILE.CLASS`` for each class whose constructor takes a number of classes."""
    import vit_pytorch

    found = []
    for file in sorted(one.name for one in pkgutil.iter_modules(vit_pytorch.__path__)):
        try:
            module = importlib.import_module(f"vit_pytorch.{file}")
        except ImportError:
            continue  # it needs a package that is not installed
        own = {name: cls for name, cls in vars(module).items() if getattr(cls, "__module__", "") == module.__name__}
        models = {name: cls for name, cls in own.items() if isinstance(cls, type) and issubclass(cls, nn.Module)}
        for name, cls in models.items():
            parameters = inspect.signature(cls).parameters
            is_whole = "num_classes" in parameters and "embedding_dim" not in parameters  # else a part of one
            if is_whole or f"{file}.{name}" in _OPTIONS:
                found.append(f"{file}.{name}")
    return found


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns a model and the first inputs that it takes."""
    file, _, class_name = name.partition(".")
    cls = getattr(importlib.import_module(f"vit_pytorch.{file}"), class_name)
    options = dict(_OPTIONS.get(name, {}))
    for key, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or key in options:
            continue
        if parameter.default is inspect.Parameter.empty or (key in _SIZES and isinstance(parameter.default, int)):
            options[key] = _SIZES[key]
    model: nn.Module = cls(**options)
    failure: Exception | None = None
    for shape in _INPUTS:
        inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
        try:
            with torch.no_grad():
                model.train()(*inputs)
            return model, inputs
        except Exception as error:  # the model takes other inputs
            failure = failure or error
    raise ValueError(f"takes none of the inputs tried: {failure}")
