"""Strategies for inputs: valid ones with a few changes, which get far, and arbitrary ones, which do not."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

NAMES = (
    "neuron block auto forward backward cyclic random coverage rules .. ../../etc/passwd /etc/passwd * nan é float32 nn"
)
PARTS = "0.up.weight shared owners model Tensor level replicas step-00000001"
WORDS = st.sampled_from([*NAMES.split(), *PARTS.split(), "", "a\x00b", "__import__('os').system('true')"])
TEXTS = WORDS | st.text(max_size=8)
NUMBERS = st.integers(-3, 20) | st.sampled_from([2**31, 2**63, 2**64, 10**15, 10**30, -(2**63)]) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=4
)

POLICY = """\
level = "neuron"
masking = "forward"
coverage = 0.5
axes = "disjoint"
scope = "branches"
design = "cyclic"
rescale = false

[rules]
"1.*" = "shared"
"0.up" = { coverage = 0.25 }
"""


PASSES = """\
passes = ["rescale", "bypass_blocks", { pass = "slice_parameters" }, "dead_code", "sync_gradients", "verify"]
"""


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with one to three values replaced, removed or repeated."""
    document = deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        at = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and draw(st.integers(0, 9)):
                at = at[key]
                continue
            how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if how == "replace":
                at[key] = draw(VALUES)
            elif how == "remove":
                del at[key]
            elif isinstance(at, dict):
                at[draw(TEXTS)] = draw(VALUES)
            else:
                at.append(draw(st.sampled_from(at) | VALUES))
            break
    return document


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few places overwritten, cut out, put in or cut off."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(result)))
        count = draw(st.integers(0, 9))
        how = draw(st.sampled_from(["overwrite", "insert", "end"]))
        if how == "end":
            del result[at:]
        else:
            result[at : at + count if how == "overwrite" else at] = draw(st.binary(max_size=9) | WORDS.map(str.encode))
    return bytes(result)


@st.composite
def documents(draw: st.DrawFn, valid: str) -> bytes:
    """TOML like a valid one, or of other keys and values."""
    if draw(st.booleans()):
        return draw(edited(valid.encode()))
    lines = [f"{draw(KEYS)} = {_toml(draw(VALUES))}" for _ in range(draw(st.integers(0, 4)))]
    lines += [f"[rules]\n{json.dumps(draw(TEXTS))} = {_toml(draw(VALUES))}"] if draw(st.booleans()) else []
    return "\n".join(lines).encode("utf-8", "surrogatepass")


KEYS = st.sampled_from(
    "level masking coverage replicas axes scope granularity align design rescale seed match shared rules node_size "
    "passes add pass default more name memory policy".split()
)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return "" if value is None else json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


COMMANDS: dict[str, tuple[str, ...]] = {
    "plan": (
        "--workers",
        "--policy",
        "--coverage",
        "--replicas",
        "--masking",
        "--input",
        "--set",
        "--json",
        "--passes",
    ),
    "check": ("--workers", "--policy", "--coverage", "--input", "--set", "--masking", "--node-size"),
    "train": ("--policy", "--passes", "--resume", "--checkpoint", "--every", "--keep", "--level", "--asynchronous"),
    "checkpoint": ("--json", "--debug"),
    "merge": ("-o", "--output", "--reset-lost-optimizer-state"),
    "inspect": ("--policy", "--json", "--worker"),
    "simulate": ("--workers", "--nodes", "--json", "--hardware"),
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Arguments of the command line that stop before long work: no model has such a name."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    words = TEXTS | NUMBERS.map(str) | st.sampled_from(["torchvision:no", "x:", ":", "no.py:f", "no/", "2x3", "i=2:z"])
    result = [command]
    if command == "train":
        result += ["--policy", "no-such-policy"]
    elif draw(st.integers(0, 4)):
        result.append("torchvision:nosuch" + draw(st.text(max_size=3)) if command != "merge" else draw(words))
    for _ in range(draw(st.integers(0, 4))):
        result.append(draw(st.sampled_from(COMMANDS[command]) | words))
        if draw(st.booleans()):
            result.append(draw(words))
    return result
