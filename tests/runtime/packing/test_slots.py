"""The gradients of a bucket in one flat buffer, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.packing.lots import Lot
from sdp_compile.runtime.packing.slots import Slot
from tests.runtime.gradients.alone import bucket, slot

BUCKET = bucket(0, matrix=([0, 1], [0, 2]), vector=([1, 3],))
"""Elements 0, 2, 3 and 5 of a matrix of 2 x 3, and two of a vector of four."""


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    result = {"matrix": nn.Parameter(torch.zeros(2, 3)), "vector": nn.Parameter(torch.zeros(4))}
    result["matrix"].grad = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    result["vector"].grad = torch.tensor([10.0, 20, 30, 40])
    return result


@pytest.fixture(autouse=True)
def used_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is not zero by chance."""
    monkeypatch.setattr(torch, "empty", lambda length, **kind: torch.full((length,), float("nan"), **kind))


def packed(made: Slot, parameters: dict[str, nn.Parameter], length: int, given: dict[str, Tensor]) -> Tensor:
    (flat,) = Lot([made]).pack([made], [length], parameters, given)
    return flat


def test_a_slot_knows_its_pieces() -> None:
    made = slot(bucket(7, a=([0, 1],), b=([0, 1, 2],)))
    assert (made.bucket.number, made.numel, made.names) == (7, 5, ("a", "b"))
    assert [entry.place for entry in made.entries] == [slice(0, 2), slice(2, 5)]


def test_gradients_are_packed_in_order_and_the_excess_is_zero(parameters: dict[str, nn.Parameter]) -> None:
    assert packed(slot(BUCKET), parameters, 8, {}).tolist() == [1, 3, 4, 6, 20, 40, 0, 0]


def test_given_gradients_are_added_and_missing_ones_are_zero(parameters: dict[str, nn.Parameter]) -> None:
    given = {"matrix": torch.full((2, 3), 100.0)}
    assert packed(slot(BUCKET), parameters, 6, given).tolist() == [101, 103, 104, 106, 20, 40]
    parameters["matrix"].grad = None
    assert packed(slot(BUCKET), parameters, 6, given).tolist() == [100, 100, 100, 100, 20, 40]
    assert packed(slot(BUCKET), parameters, 6, {}).tolist() == [0, 0, 0, 0, 20, 40]


def test_the_buffer_holds_the_values_of_all_dtypes(parameters: dict[str, nn.Parameter]) -> None:
    vector = parameters["vector"] = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    vector.grad = torch.full((4,), 1 + 2.0**-40, dtype=torch.float64)
    flat = packed(slot(BUCKET), parameters, 6, {})
    assert flat.dtype == torch.float64 and flat.tolist() == [1, 3, 4, 6, 1 + 2.0**-40, 1 + 2.0**-40]
    flat = packed(slot(BUCKET, torch.bfloat16), parameters, 6, {})
    assert flat.dtype == torch.bfloat16 and flat.tolist() == [1, 3, 4, 6, 1, 1]


def test_complex_gradients_travel_as_they_are() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    parameter.grad = torch.tensor([1j, 2, 3])
    flat = packed(slot(bucket(0, a=([0, 2],)), torch.bfloat16), {"a": parameter}, 2, {})
    assert flat.dtype == torch.complex64 and flat.tolist() == [1j, 3]


@pytest.mark.parametrize("is_given", [True, False])
def test_a_sparse_gradient_is_an_error(parameters: dict[str, nn.Parameter], is_given: bool) -> None:
    sparse, given = torch.ones(4).to_sparse(), {}
    if is_given:
        given["vector"] = sparse
    else:
        parameters["vector"].grad = sparse
    with pytest.raises(SDPError, match=r"gradient of 'vector' is sparse .* sparse=False"):
        packed(slot(BUCKET), parameters, 6, given)


FLAT = torch.tensor([10.0, 11, 12, 13, 14, 15, 99])


def unpacked(made: Slot, part: slice, parameters: dict[str, nn.Parameter]) -> list[Tensor | None]:
    made.unpack(FLAT, part, parameters)
    return [parameters[name].grad for name in ("matrix", "vector")]


@pytest.mark.parametrize(
    ("part", "matrix", "vector"),
    [
        (slice(None), [[10, 2, 11], [12, 5, 13]], [10, 14, 30, 15]),
        (slice(2, 5), [[1, 2, 3], [12, 5, 13]], [10, 14, 30, 40]),
        (slice(1, 3), [[1, 2, 11], [12, 5, 6]], [10, 20, 30, 40]),
        (slice(5, 7), [[1, 2, 3], [4, 5, 6]], [10, 20, 30, 15]),
    ],
)
def test_a_part_of_the_buffer_replaces_its_elements(
    part: slice, matrix: list[list[int]], vector: list[int], parameters: dict[str, nn.Parameter]
) -> None:
    first, second = unpacked(slot(BUCKET), part, parameters)
    assert first is not None and second is not None
    assert (first.tolist(), second.tolist()) == (matrix, vector)


def test_a_missing_gradient_is_made_but_not_that_of_a_frozen_parameter(parameters: dict[str, nn.Parameter]) -> None:
    parameters["matrix"].requires_grad_(False).grad = None
    parameters["vector"].grad = None
    first, second = unpacked(slot(BUCKET), slice(None), parameters)
    assert first is None and second is not None
    assert second.tolist() == [0, 14, 0, 15]
