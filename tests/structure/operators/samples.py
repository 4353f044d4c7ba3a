"""Calls of ATen operators with arguments drawn at random, mechanically from their schemas."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.ir.schema import parameters

Tensor = torch.Tensor

# By operator or overload the arguments that their types alone do not give. A list of sizes is a tensor to be drawn.
SAMPLES: dict[str, dict[str, Any]] = {
    "linear": {"input": [2, 4], "weight": [3, 4], "bias": [3]},
    "bilinear": {"input1": [2, 4], "input2": [2, 5], "weight": [3, 4, 5], "bias": [3]},
    "conv1d": {"input": [2, 4, 6], "weight": [4, 2, 3], "bias": [4], "groups": 2},
    "conv2d": {"input": [2, 4, 5, 5], "weight": [4, 2, 3, 3], "bias": [4], "groups": 2},
    "conv3d": {"input": [2, 4, 3, 3, 3], "weight": [4, 2, 2, 2, 2], "bias": [4], "groups": 2},
    "conv_transpose1d": {"input": [2, 4, 3], "weight": [4, 2, 3], "bias": [2]},
    "conv_transpose2d": {"input": [2, 4, 3, 3], "weight": [4, 2, 2, 2], "bias": [2]},
    "conv_transpose3d": {"input": [1, 4, 2, 2, 2], "weight": [4, 2, 2, 2, 2], "bias": [2]},
    "convolution": {
        "input": [2, 4, 5, 5],
        "weight": [4, 2, 3, 3],
        "bias": [4],
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "transposed": False,
        "output_padding": (0, 0),
        "groups": 2,
    },
    "batch_norm": {"input": [3, 4, 5], "weight": [4], "bias": [4]},
    "native_batch_norm": {"input": [3, 4, 5], "weight": [4], "bias": [4]},
    "instance_norm": {"input": [3, 4, 5], "weight": [4], "bias": [4]},
    "layer_norm": {"input": [3, 4], "normalized_shape": (4,), "weight": [4], "bias": [4]},
    "native_layer_norm": {"input": [3, 4], "normalized_shape": (4,), "weight": [4], "bias": [4]},
    "rms_norm": {"input": [3, 4], "normalized_shape": (4,), "weight": [4]},
    "group_norm": {"input": [3, 4, 2], "num_groups": 2, "weight": [4], "bias": [4]},
    "native_group_norm": {
        "input": [3, 4, 2],
        "weight": [4],
        "bias": [4],
        "N": 3,
        "C": 4,
        "HxW": 2,
        "group": 2,
    },
    "_weight_norm": {"v": [3, 4], "g": [3, 1]},
    "scaled_dot_product_attention": {"query": [1, 2, 3, 4], "key": [1, 2, 5, 4], "value": [1, 2, 5, 4]},
    "matmul": {"self": [3, 4], "other": [4, 2]},
    "linalg_matmul": {"self": [3, 4], "other": [4, 2]},
    "mm": {"self": [3, 4], "mat2": [4, 2]},
    "bmm": {"self": [2, 3, 4], "mat2": [2, 4, 2]},
    "mv": {"self": [3, 4], "vec": [4]},
    "dot": {"self": [4], "tensor": [4]},
    "vdot": {"self": [4], "other": [4]},
    "outer": {"self": [3], "vec2": [4]},
    "ger": {"self": [3], "vec2": [4]},
    "addmm": {"self": [2], "mat1": [3, 4], "mat2": [4, 2]},
    "addmv": {"self": [3], "mat": [3, 4], "vec": [4]},
    "addr": {"self": [3, 4], "vec1": [3], "vec2": [4]},
    "baddbmm": {"self": [2], "batch1": [2, 3, 4], "batch2": [2, 4, 2]},
    "addbmm": {"self": [2], "batch1": [2, 3, 4], "batch2": [2, 4, 2]},
    "tensordot": {"self": [3, 4], "other": [4, 2], "dims_self": (1,), "dims_other": (0,)},
    "cross": {"self": [2, 3], "other": [2, 3], "dim": 1},
    "linalg_cross": {"self": [2, 3], "other": [2, 3]},
    "einsum": {"equation": "ij,ij->i"},
    "prelu": {"self": [3, 4], "weight": [4]},
    "embedding": {"weight": [4, 3], "indices": torch.tensor([1, 0])},
    "embedding_bag": {"weight": [4, 3], "indices": torch.tensor([1, 0, 2]), "offsets": torch.tensor([0, 1])},
    "_embedding_bag": {"weight": [4, 3], "indices": torch.tensor([1, 0, 2]), "offsets": torch.tensor([0, 1])},
    "gather": {"index": torch.tensor([[1, 0, 2, 1]])},
    "take_along_dim": {"indices": torch.tensor([[1], [0], [2]]), "dim": 1},
    "index": {"indices": [torch.tensor([1, 0])]},
    "index_put": {"self": [3, 4], "indices": [torch.tensor([1, 0])], "values": [2, 4]},
    "index_add": {"self": [3, 4], "dim": 0, "index": torch.tensor([1, 0]), "source": [2, 4]},
    "index_copy": {"self": [3, 4], "dim": 0, "index": torch.tensor([1, 0]), "source": [2, 4]},
    "scatter": {"self": [3, 4], "dim": 0, "index": torch.tensor([[1, 0, 2, 1]]), "src": [1, 4]},
    "scatter_add": {"self": [3, 4], "dim": 0, "index": torch.tensor([[1, 0, 2, 1]]), "src": [1, 4]},
    "scatter_reduce": {
        "self": [3, 4],
        "dim": 0,
        "index": torch.tensor([[1, 0, 2, 1]]),
        "src": [1, 4],
        "reduce": "sum",
    },
    "slice_scatter": {"self": [3, 4], "src": [2, 4], "dim": 0, "start": 1},
    "select_scatter": {"self": [3, 4], "src": [4], "dim": 0, "index": 1},
    **{name: {"self": [3, 3]} for name in ("cholesky_inverse", "inverse", "logdet", "slogdet", "svd")},
    "cholesky_solve": {"self": [3, 2], "input2": [3, 3]},
    "triangular_solve": {"self": [3, 2], "A": [3, 3]},
    "multinomial": {"num_samples": 1},
    "clamp.Tensor": {"min": [3, 4], "max": [3, 4]},
    "count_nonzero.dim_IntList": {"dim": (0,)},
    "einsum.default": {"tensors": [[3, 4], [3, 4]]},
    "embedding_bag.padding_idx": {
        "scale_grad_by_freq": False,
        "mode": 0,
        "sparse": False,
        "include_last_offset": False,
        "per_sample_weights": None,
        "padding_idx": 0,
    },
    "fill.Tensor": {"value": []},
    "index_fill.int_Tensor": {"value": []},
    "masked_fill.Tensor": {"value": []},
    "moveaxis.intlist": {"source": (0,), "destination": (1,)},
    "movedim.intlist": {"source": (0,), "destination": (1,)},
    "narrow.Tensor": {"start": torch.tensor(1)},
    "repeat_interleave.Tensor": {"repeats": torch.tensor([2, 1])},
    "repeat_interleave.self_Tensor": {"repeats": torch.tensor([2, 1, 1]), "dim": 0},
    "scatter.reduce": {"reduce": "add"},
    "scatter.value_reduce": {"reduce": "add"},
    "split.sizes": {"split_size": (1, 2)},
    "squeeze.dims": {"dim": (1,)},
    "tensor_split.tensor_indices_or_sections": {"tensor_indices_or_sections": torch.tensor(2)},
    "masked_scatter": {"self": [3, 4], "mask": torch.tensor([True, False, False, True]), "source": [3, 4]},
    "view_as_complex": {"self": [3, 2]},
    "view_as_complex_copy": {"self": [3, 2]},
    "grid_sampler": {"input": [1, 2, 4, 4], "grid": [1, 3, 3, 2], "interpolation_mode": 0, "padding_mode": 0},
    "grid_sampler_2d": {"input": [1, 2, 4, 4], "grid": [1, 3, 3, 2], "interpolation_mode": 0, "padding_mode": 0},
    "grid_sampler_3d": {"input": [1, 2, 3, 3, 3], "grid": [1, 2, 2, 2, 3], "interpolation_mode": 0, "padding_mode": 0},
    "im2col": {"self": [1, 2, 4, 4], "kernel_size": (2, 2), "dilation": (1, 1), "padding": (0, 0), "stride": (1, 1)},
    "col2im": {
        "self": [1, 8, 4],
        "output_size": (4, 4),
        "kernel_size": (2, 2),
        "dilation": (1, 1),
        "padding": (0, 0),
        "stride": (2, 2),
    },
    "pixel_shuffle": {"self": [1, 4, 2, 2]},
    "pixel_unshuffle": {"self": [1, 2, 4, 4]},
    "channel_shuffle": {"self": [1, 4, 2], "groups": 2},
    "native_channel_shuffle": {"self": [1, 4, 2], "groups": 2},
    "feature_dropout": {"input": [2, 3, 4]},
    "clamp": {"min": -0.2, "max": 0.3},
    "select": {"dim": 0, "index": 1},
    "unflatten": {"dim": 1, "sizes": (2, 2)},
    "view": {"size": (4, 3)},
    "reshape": {"shape": (4, 3)},
    "_unsafe_view": {"size": (4, 3)},
    "expand": {"size": (2, 3, 4)},
    "broadcast_to": {"size": (2, 3, 4)},
    "squeeze": {"self": [3, 1]},
    "pad": {"pad": (1, 2)},
    "constant_pad_nd": {"pad": (1, 2)},
    "zeros": {"size": (2, 3)},
    "new_zeros": {"size": (2, 3)},
    "dsplit": {"self": [2, 3, 4], "sections": 2, "indices": (1, 3)},
    "hsplit": {"sections": 2, "indices": (1, 3)},
    "vsplit": {"sections": 3, "indices": (1, 2)},
    "split": {"split_size": 2, "split_sizes": (1, 2)},
    "unsafe_split": {"split_size": 2},
    "split_with_sizes": {"split_sizes": (1, 2)},
    "unsafe_split_with_sizes": {"split_sizes": (1, 2)},
    "tensor_split": {"sections": 2, "indices": (1, 3)},
    "narrow": {"start": 1, "length": 2},
    "unfold": {"dimension": 1, "size": 2, "step": 1},
    "rot90": {"dims": (0, 1)},
    "mvlgamma": {"p": 1},
    "polygamma": {"n": 1},
    "repeat_interleave": {"repeats": 2},
    "fft_irfft2": {"self": [3, 4]},
}
NUMBERED = {"dim0": 0, "dim1": 1, "axis0": 0, "axis1": 1, "dim": 0, "source": 0, "destination": 1, "dims": (1, 0)}
BY_NAME: dict[str, Any] = {
    **NUMBERED,
    "condition": torch.tensor([True, False, True, False]),
    "mask": torch.tensor([True, False, True, False]),
    "index": torch.tensor([1, 0]),
    "running_mean": None,
    "running_var": None,
    "use_input_stats": True,
    "cudnn_enabled": False,
    "negative_slope": 0.1,
    "output_size": 3,
    "upscale_factor": 2,
    "downscale_factor": 2,
    "kernel_size": 2,
    "shifts": (1,),
    "repeats": (2, 1),
    "chunks": 2,
}
BY_TYPE: dict[str, Any] = {"bool": True, "float": 0.5, "int": 1, "Device": "cpu"}

COMPLEX = {"_conj", "imag", "view_as_real", "view_as_real_copy"}
ALWAYS_REAL = {"polar", "complex"}

NUMBERS = (0, 0.5, 1, 1.5, 2, -0.5)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "number": NUMBERS,
    "float": NUMBERS,
    "rounding_mode": ("floor", "trunc"),
    "approximate": ("tanh",),
    "mode": ("reflect", "replicate", "circular"),
    "reduce": ("prod", "mean", "amax", "amin"),
}
"""By type, or by name for texts, values in place of the default or of the sample."""


def overloads(name: str) -> list[Any]:
    namespace, _, short = name.rpartition("::")
    packet = getattr(getattr(torch.ops, namespace), short)
    found = [getattr(packet, overload) for overload in packet.overloads()]
    return [
        one
        for one in found
        if not any(p.is_out or p.is_written for p in parameters(one))
        and not any("Dict" in str(value.type) for value in (*one._schema.arguments, *one._schema.returns))
        and all("Tensor" in str(result.type) for result in one._schema.returns)  # others are those of TorchScript
    ]


def spatial_shape(name: str) -> list[int] | None:
    """Operators on the last one, two or three dimensions say so in their name."""
    dims = next((n for n in (1, 2, 3) if f"{n}d" in name), None)
    return None if dims is None else [1, 2, *[4] * dims]


def spatial_argument(name: str, argument: str) -> Any:
    dims = next((n for n in (1, 2, 3) if f"{n}d" in name), 0)
    sizes = {"kernel_size": 2, "output_size": 3}
    if argument in sizes and dims:
        return (sizes[argument],) * dims
    return (1,) * 2 * dims if argument == "padding" and dims else None


def drawn(shape: Any, draw: random.Random, dtype: torch.dtype = torch.float64) -> Tensor:
    """Between 0.1 and 0.9, in half of the draws of either sign; both parts of complex numbers."""
    if dtype.is_complex:
        return torch.complex(drawn(shape, draw), drawn(shape, draw)).to(dtype)
    values = torch.tensor([draw.uniform(0.1, 0.9) for _ in range(torch.Size(shape).numel())], dtype=torch.float64)
    signs = torch.tensor([draw.choice((-1.0, 1.0)) for _ in values]) if draw.random() < 0.5 else 1.0
    return (values * signs).reshape(shape).to(dtype)


def _given(value: Any, draw: random.Random, dtype: torch.dtype) -> Any:
    """A sample, or what is drawn for one that is a list of sizes, or of lists of sizes."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [drawn(shape, draw, dtype) for shape in value]
    is_shape = isinstance(value, list) and all(isinstance(size, int) for size in value)
    return drawn(value, draw, dtype) if is_shape else value


def arguments_of(
    name: str,
    overload: Any,
    draw: random.Random,
    dtype: torch.dtype = torch.float64,
    option: int | None = None,
    shape: Sequence[int] = (3, 4),
) -> dict[str, Any]:
    """All arguments of one call by name, those left out that take their default.

    Args:
        name: The operator's name.
        overload: One of its overloads.
        draw: The source of randomness.
        dtype: The dtype of tensors of floats.
        shape: The shape of tensors that have no sample.
        option: A number that chooses other values than the default or the sample's for numbers and modes.
    """
    short = name.rpartition("::")[2]
    given = {**SAMPLES.get(short, {}), **SAMPLES.get(f"{short}.{overload._overloadname}", {})}
    if short in COMPLEX:
        dtype = {torch.float32: torch.complex64, torch.float64: torch.complex128}.get(dtype, dtype)
    elif short in ALWAYS_REAL:
        dtype = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
    result: dict[str, Any] = {}
    for argument in overload._schema.arguments:
        key, kind = argument.name, str(argument.type)
        if kind.startswith("Optional["):
            kind = kind[len("Optional[") : -1]
        choices = () if option is None else OPTIONS.get(key if kind == "str" else kind, ())
        if choices:
            assert option is not None
            result[key] = choices[(option + len(result)) % len(choices)]  # not the same one for all arguments
        elif key in given:
            result[key] = _given(given[key], draw, dtype)
        elif argument.has_default_value():
            continue
        elif spatial_argument(short, key) is not None:
            result[key] = spatial_argument(short, key)
        elif key in BY_NAME and kind != "List[Tensor]" and not (kind == "Tensor" and key in NUMBERED):
            result[key] = BY_NAME[key]
        elif kind == "Tensor":
            result[key] = drawn(spatial_shape(short) or shape, draw, dtype)
        elif kind == "List[Tensor]":
            result[key] = [drawn(shape, draw, dtype), drawn(shape, draw, dtype)]
        elif kind == "number":
            result[key] = draw.choice(NUMBERS)
        elif key == "dtype":
            result[key] = dtype
        elif kind in BY_TYPE:
            result[key] = BY_TYPE[kind]
        else:
            result[key] = None
    return result
