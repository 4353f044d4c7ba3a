"""Python values as JSON and back, exactly: states of schedulers, loaders and random number generators.

JSON and not pickle, because reading a checkpoint must not run code. What JSON lacks is an object with a single key, the
name of a type: ``{"tuple": [1, 2]}``.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdp_compile.errors import SDPError

MOST_BYTES = 64 * 2**20
"""The largest tensor that is written as text; larger ones do not belong into such states."""


def encode(value: Any, what: str) -> Any:
    """Returns a value as data for JSON.

    Args:
        value: Numbers, texts, bytes, tensors, arrays, and dictionaries, lists, tuples and sets of such.
        what: What the value is called in errors.

    Raises:
        SDPError: If it holds anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": b64encode(value).decode()}
    if isinstance(value, complex):
        return {"complex": [encode(value.real, what), encode(value.imag, what)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (Tensor, np.ndarray)):
        return _encode_tensor(value, what)
    return _encode_container(value, what)


def decode(value: Any) -> Any:
    """Returns the value that `encode` was given.

    Raises:
        SDPError: If the data are not what `encode` returns.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or next(iter(value)) not in _DECODERS:
        raise SDPError(f"A state in the checkpoint is damaged: no value has the keys {sorted(value)[:5]}.")
    ((kind, content),) = value.items()
    try:
        return _DECODERS[kind](content)
    except SDPError:
        raise
    except Exception as error:  # whatever a constructor makes of other content
        raise SDPError(f"A state in the checkpoint is damaged: {kind} cannot be read ({error!s:.200}).") from error


def _encode_tensor(value: Tensor | np.ndarray[Any, Any], what: str) -> Any:
    kind, tensor = ("tensor", value) if isinstance(value, Tensor) else ("array", _of_array(value, what))
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        raise SDPError(f"{what} holds a {type(tensor).__name__} that is no plain tensor. Remove it first.")
    if tensor.nbytes > MOST_BYTES:
        raise SDPError(
            f"{what} holds a tensor of {tensor.nbytes} bytes, but at most {MOST_BYTES} fit into such a state. Register "
            "it as a buffer of the model."
        )
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return {
        kind: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "data": b64encode(flat.view(torch.uint8).numpy().tobytes()).decode(),
        }
    }


def _of_array(array: np.ndarray[Any, Any], what: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise SDPError(f"{what} holds an array of {array.dtype}, which a checkpoint cannot store.") from error


def _encode_container(value: Any, what: str) -> Any:
    if type(value) is list:
        return [encode(item, what) for item in value]
    for name, kind in _SEQUENCES.items():
        if type(value) is kind:
            return {name: [encode(item, what) for item in value]}
    for name, kind in _MAPPINGS.items():
        if type(value) is kind:
            return {name: [[encode(key, what), encode(item, what)] for key, item in value.items()]}
    raise SDPError(
        f"{what} holds a {type(value).__module__}.{type(value).__qualname__}. Checkpoints store numbers, texts, bytes, "
        "tensors, and dictionaries, lists, tuples and sets of such, because reading them must not run code."
    )


def _decode_tensor(content: Mapping[str, Any]) -> Tensor:
    dtype, shape = getattr(torch, content["dtype"]), [int(size) for size in content["shape"]]
    data = bytearray(b64decode(content["data"], validate=True))
    if not isinstance(dtype, torch.dtype) or any(size < 0 for size in shape):
        raise ValueError("bad dtype or shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for the shape {shape}")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)


def _decode_pairs(content: list[list[Any]]) -> list[tuple[Any, Any]]:
    return [(decode(key), decode(item)) for key, item in content]


_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size}
_MAPPINGS: dict[str, Any] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "bytes": lambda content: b64decode(content, validate=True),
    "complex": lambda content: complex(decode(content[0]), decode(content[1])),
    "dtype": lambda content: _decode_tensor({"dtype": content, "shape": [0], "data": ""}).dtype,
    "tensor": _decode_tensor,
    "array": lambda content: _decode_tensor(content).numpy(),
    "tuple": lambda content: tuple(decode(item) for item in content),
    "set": lambda content: {decode(item) for item in content},
    "frozenset": lambda content: frozenset(decode(item) for item in content),
    "size": lambda content: torch.Size(decode(item) for item in content),
    "dict": lambda content: dict(_decode_pairs(content)),
    "ordered": lambda content: OrderedDict(_decode_pairs(content)),
    "counter": lambda content: Counter(dict(_decode_pairs(content))),
}
