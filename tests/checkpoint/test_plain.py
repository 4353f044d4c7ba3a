"""Python values as JSON: they come back equal in value and type, and nothing else is written or read."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.checkpoint.plain import decode, encode
from sdp_compile.errors import SDPError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(KEYS, inner).map(OrderedDict)
    ),
    max_leaves=12,
)


def through_json(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value, "it"), allow_nan=False)))


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    found = through_json(value)
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0, 2), (3, 4)])
def test_tensors_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).to(dtype)
    found = through_json({"it": tensor.t() if len(shape) == 2 else tensor})["it"]
    found = found.t() if len(shape) == 2 else found
    assert found.dtype == dtype and found.shape == tensor.shape and torch.equal(found, tensor)


def test_special_values_come_back() -> None:
    assert math.isnan(through_json(float("nan"))) and through_json(-math.inf) == -math.inf
    assert through_json(Counter({30: 2})) == Counter({30: 2}) and type(through_json(Counter())) is Counter
    assert through_json(torch.bfloat16) is torch.bfloat16 and through_json(np.float64(0.1)) == 0.1
    assert (
        through_json(1 - 2j) == 1 - 2j and through_json({3, -7}) == {3, -7} and through_json(frozenset()) == frozenset()
    )
    state = np.random.get_state()
    found = through_json(state)
    assert np.array_equal(found[1], state[1]) and found[0] == state[0] and found[2:] == state[2:]
    assert through_json(random.getstate()) == random.getstate()


@pytest.mark.parametrize("value", [lambda: None, object(), {"a": [torch.nn.Linear(1, 1)]}, np.array([object()])])
def test_other_values_are_refused_by_name(value: Any) -> None:
    with pytest.raises(SDPError, match="the state of Loader holds"):
        encode(value, "the state of Loader")


@pytest.mark.parametrize(
    "data",
    [
        {"function": "os.system"},
        {"tuple": 1},
        {"tensor": {"dtype": "float32", "shape": [10**12], "data": ""}},
        {"tensor": {"dtype": "float32", "shape": [-1, -1], "data": "AAAAAA=="}},
        {"tensor": {"dtype": "save", "shape": [0], "data": ""}},
        {"tensor": {"dtype": "float32", "shape": [1], "data": "?"}},
        {"dict": [[{"dict": []}, 1]]},
        {"dtype": "nn"},
        {"float": "x"},
        {},
        {"a": 1, "b": 2},
    ],
)
def test_damaged_data_are_an_error(data: Any) -> None:
    with pytest.raises(SDPError, match="damaged"):
        decode(data)
