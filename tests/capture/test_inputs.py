"""Example inputs as the arguments of one call."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture.inputs import Call, describe, example_call, with_batch
from sdp_compile.errors import CaptureError
from tests.capture.models import Residual

X = torch.randn(4, 6)


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X,), (X,), {}),
        ([X], (X,), {}),
        ({"x": X, "bias": 0.5}, (), {"x": X, "bias": 0.5}),
        (UserDict(x=X), (), {"x": X}),
    ],
    ids=["tensor", "tuple", "list", "mapping", "mapping that is no dict"],
)
def test_what_inputs_stand_for(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    call = example_call(Residual(), given)
    assert call.args == args and call.kwargs == kwargs


def test_a_model_without_required_inputs_needs_none() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor | None = None, *rest: Any, **options: Any) -> torch.Tensor:
            return torch.ones(1)

    assert example_call(Constant(), None) == Call((), {})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, ["'x'", "example_inputs=("]),
        ((), ["'x'", "missing"]),
        ((X, 1, 2), ["too many positional", "float32[4, 6]"]),
        ({"y": X}, ["'x'"]),
        ({"x": X, "other": {"a": X}}, ["'other'", "other={'a': float32[4, 6]}"]),
        ({3: X}, ["must be strings", "[3]"]),
        ("text", ["not str"]),
    ],
)
def test_inputs_that_do_not_fit_forward(inputs: Any, words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        example_call(Residual(), inputs)
    for word in ("Residual", *words):
        assert word in str(caught.value)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor


class Doubled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {}) * 2


PACKED = nn.utils.rnn.pack_padded_sequence(torch.ones(2, 4, 3), torch.tensor([4, 2]), batch_first=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Batch(X), r"hold a Batch, a dataclass .*torch\.export\.register_dataclass\(Batch\)"),
        ([{"a": Batch(X)}], "hold a Batch, a dataclass"),
        (PACKED, "hold a PackedSequence, whose sizes .*padded tensor and the lengths"),
        (torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged), "hold a nested tensor.*padded"),
        (torch.nested.nested_tensor([X, X[:2]]), "hold a nested tensor.*padded"),
        (torch.eye(3).to_sparse_csr(), r"hold a sparse_csr tensor.*to_sparse_coo\(\)"),
        (X.as_subclass(Doubled), r"hold a tensor of the class .*Doubled.*as_subclass\(torch\.Tensor\)"),
        (nn.Linear(2, 2), "hold a module, Linear.*constructor"),
    ],
)
def test_arguments_that_no_graph_can_take(value: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        example_call(Residual(), (value,))


class Plain(torch.Tensor):
    """A class that only has a name of its own."""


@pytest.mark.parametrize("value", [X.as_subclass(Plain), nn.Parameter(X), torch.eye(4).to_sparse(), Batch, "a", None])
def test_other_arguments_stay_as_they_are(value: Any) -> None:
    assert example_call(Residual(), (value,)).args[0] is value


def test_tensors_inside_of_containers_are_found_and_mapped() -> None:
    inner = OrderedDict(b=[torch.ones(2, dtype=torch.int64), "text"])
    call = Call((X, 3), {"extra": inner})
    assert call.dtypes == (torch.float32, torch.int64)
    mapped = call.map_tensors(lambda tensor: tensor.to("meta"))
    assert [tensor.is_meta for tensor in mapped.tensors] == [True, True]
    assert mapped.args[1] == 3 and isinstance(mapped.kwargs["extra"], OrderedDict)
    assert mapped.kwargs["extra"]["b"][1] == "text"


def test_a_batch_of_one_becomes_two() -> None:
    call = Call((torch.arange(3.0).view(1, 3), torch.ones(())), {"mask": torch.zeros(1, 1, 4), "rows": torch.ones(5)})
    batched = with_batch(call)
    assert batched is not None
    x, scalar, mask, rows = batched.tensors
    assert torch.equal(x, torch.tensor([[0.0, 1, 2], [0, 1, 2]])) and mask.shape == (2, 1, 4)
    assert scalar.shape == () and rows.shape == (5,)


def test_other_batches_stay() -> None:
    assert with_batch(Call((X, torch.ones(1, 6)), {})) is None, "a leading 1 beside a larger batch is broadcast"
    assert with_batch(Call((torch.ones(()), 1), {})) is None


def test_descriptions_are_short() -> None:
    assert describe((X.bfloat16(), [1, None], {"a": X.long()})) == "(bfloat16[4, 6], (1, None), {'a': int64[4, 6]})"
    assert describe("a" * 100) == "<str>"
