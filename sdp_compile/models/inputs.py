"""``--input`` and ``--set`` of the command line. Imports torch only to make tensors."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdp_compile.errors import SDPError

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")
_SHORT = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:[x,]\d+)*|scalar)(?::(?P<dtype>\w+))?")
_MOST_INTEGER = 2  # exclusive: every vocabulary has these indices


@dataclass(frozen=True)
class Input:
    """One parsed ``--input``; ``name`` is empty for a positional argument."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def parse_input(text: str) -> Input:
    """Parses ``2x3x64x64``, ``2x16:int64`` or ``input_ids=2x16:int64``. Raises `SDPError` that quotes the text."""
    match = _INPUT.fullmatch(text.replace(" ", ""))
    if match is None:
        raise SDPError(
            f"--input {text}: write SHAPE[:DTYPE] such as 2x3x64x64 or 2x16:int64, or NAME=SHAPE[:DTYPE] for a keyword "
            "argument."
        )
    dtype = _SHORT.get(match["dtype"], match["dtype"]) or "float32"
    if dtype not in DTYPES:
        from difflib import get_close_matches

        close = get_close_matches(dtype, DTYPES, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise SDPError(f"--input {text}: no dtype {dtype!r}.{hint} The dtypes are {', '.join(DTYPES)}.")
    shape = () if match["shape"] == "scalar" else tuple(map(int, re.split("[x,]", match["shape"])))
    if 0 in shape:
        raise SDPError(f"--input {text}: a dimension of size 0 leaves nothing to check. Use at least 2.")
    return Input(match["name"] or "", shape, dtype)


def example_inputs(texts: Sequence[str]) -> Any:
    """Returns random tensors for the words: a mapping where they are named, else a tuple.

    Integers are 0 or 1, which are valid indices into every table.
    """
    import torch

    inputs = [parse_input(text) for text in texts]
    if len({bool(one.name) for one in inputs}) > 1:
        raise SDPError("--input: name all inputs (NAME=SHAPE) or none of them.")
    generator = torch.Generator().manual_seed(0)

    def tensor(one: Input) -> torch.Tensor:
        dtype: torch.dtype = getattr(torch, one.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(one.shape, generator=generator).to(dtype)
        return torch.randint(0, _MOST_INTEGER, one.shape, generator=generator).to(dtype)

    if inputs and inputs[0].name:
        return {one.name: tensor(one) for one in inputs}
    return tuple(map(tensor, inputs))


def parse_setting(text: str) -> tuple[str, Any]:
    """Parses ``key=value``; a value that is a Python literal becomes one. Raises `SDPError` that quotes the text."""
    key, equals, value = text.partition("=")
    if not equals or not key.replace(".", "_").isidentifier():
        raise SDPError(f"--set {text}: write key=value, such as num_hidden_layers=2 or text_config.hidden_size=64.")
    try:
        return key, ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value, value))
    except (ValueError, SyntaxError):
        return key, value
