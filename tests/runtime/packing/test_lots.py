"""The gradients of a bucket in the memory in which they travel, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.levels.room import arranged_by_peers, room_of
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
    """New memory is not zero by chance: such bytes are no numbers."""
    monkeypatch.setattr(torch, "empty", lambda nbytes, **kind: torch.full((nbytes,), 255, **kind))


def packed(
    made: Slot, parameters: dict[str, nn.Parameter], length: int, given: dict[str, Tensor], owners: int = 1
) -> Tensor:
    """What lies in the chunks of so many owners after packing."""
    everyone = tuple(range(owners))
    by_parameter = {parameters[name]: gradient for name, gradient in given.items()}
    for rank in everyone:  # which chunk is its own must not matter
        arranged = arranged_by_peers(everyone, rank, [everyone], [length], [made.dtype(parameters)])
        (chunks,) = Lot([made]).pack(lambda arranged=arranged: arranged, parameters, by_parameter).stretches
        assert [len(chunk) for chunk in chunks] == [length // owners] * owners
    return torch.cat(chunks)


def test_a_slot_knows_its_pieces() -> None:
    made = slot(bucket(7, a=([0, 1],), b=([0, 1, 2],)))
    assert (made.bucket.number, made.numel, made.names) == (7, 5, ("a", "b"))
    assert [(entry.name, entry.region.numel) for entry in made.entries] == [("a", 2), ("b", 3)]


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
        parameters["vector"].grad, given["vector"] = None, sparse
    else:
        parameters["vector"].grad = sparse
    with pytest.raises(SDPError, match=r"gradient of 'vector' is sparse .* sparse=False"):
        packed(slot(BUCKET), parameters, 6, given)


@pytest.mark.parametrize("owners", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_chunks_of_owners_tear_pieces_and_are_put_together_again(
    owners: int, dtype: torch.dtype | None, parameters: dict[str, nn.Parameter]
) -> None:
    """Runs, regions with strides, and regions that are no views; a chunk may hold several pieces, or part of one."""
    parameters["listed"] = nn.Parameter(torch.zeros(5, 2))
    parameters["listed"].grad = torch.arange(50.0, 60).view(5, 2)
    made = slot(bucket(0, matrix=([0, 1], [0, 2]), vector=([1, 3],), listed=([0, 1, 4], [1])), dtype)
    wanted = [1, 3, 4, 6, 20, 40, 51, 53, 59, 0, 0, 0]
    assert packed(made, parameters, 12, {}, owners).tolist() == wanted
    given = {"matrix": torch.full((2, 3), 100.0)}
    assert packed(made, parameters, 12, given, owners).tolist() == [101, 103, 104, 106, *wanted[4:]]
    memory = torch.tensor([10.0, 11, 12, 13, 14, 15, 16, 17, 18, 99, 99, 99])
    Lot([made]).unpack(room_of([memory], [tuple(range(owners))]), parameters)
    gradients = [parameter.grad for parameter in parameters.values()]
    assert [gradient.tolist() for gradient in gradients if gradient is not None] == [
        [[10, 2, 11], [12, 5, 13]],
        [10, 14, 30, 15],
        [[50, 16], [52, 17], [54, 55], [56, 57], [58, 18]],
    ]


@pytest.mark.parametrize("owners", [1, 4])
def test_what_was_packed_is_unpacked_by_the_same_views(owners: int, parameters: dict[str, nn.Parameter]) -> None:
    everyone = tuple(range(owners))
    made = slot(BUCKET)
    lot = Lot([made])
    room = lot.pack(lambda: arranged_by_peers(everyone, 0, [everyone], [8], [torch.float32]), parameters, {})
    torch._foreach_mul_(list(room.stretches[0]), 10)
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    lot.unpack(room, parameters)
    for name, parameter in parameters.items():
        assert parameter.grad is kept[name]
    assert [parameter.grad.tolist() for parameter in parameters.values() if parameter.grad is not None] == [
        [[10, 2, 30], [40, 5, 60]],
        [10, 200, 30, 400],
    ]


def test_buckets_of_several_dtypes_lie_in_one_room(parameters: dict[str, nn.Parameter]) -> None:
    """Also with a gradient that is missing in one step, and of another layout in the next."""
    parameters["vector"] = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    made = [slot(bucket(0, matrix=([0, 1], [0, 2]))), slot(bucket(1, vector=([1, 3],)))]
    arranged = arranged_by_peers((0, 1), 0, [(0, 1), (0, 1)], [4, 4], [torch.float32, torch.float64])
    lot = Lot(made)
    for vector, transposed in ((None, False), (torch.arange(4.0), False), (torch.arange(4.0), True)):
        matrix = torch.randn(3, 2).T if transposed else torch.randn(2, 3)
        parameters["matrix"].grad = matrix
        parameters["vector"].grad = None if vector is None else vector.double()
        room = lot.pack(lambda: arranged, parameters, {})
        assert torch.cat(list(room.stretches[0])).tolist() == matrix[:, [0, 2]].reshape(-1).tolist()
        assert torch.cat(list(room.stretches[1])).tolist() == ([0, 0, 0, 0] if vector is None else [1, 3, 0, 0])
        for memory in room.stretches:
            torch._foreach_mul_(list(memory), 10)
        wanted = matrix.clone()
        wanted[:, [0, 2]] *= 10
        lot.unpack(room, parameters)
        gradients = parameters["matrix"].grad, parameters["vector"].grad
        assert torch.equal(gradients[0], wanted) and gradients[1] is not None
        assert gradients[1].tolist() == ([0, 0, 0, 0] if vector is None else [0, 10, 2, 30])


def test_a_missing_gradient_is_made_but_not_that_of_a_frozen_parameter(parameters: dict[str, nn.Parameter]) -> None:
    parameters["matrix"].requires_grad_(False).grad = None
    parameters["vector"].grad = None
    made = slot(BUCKET)
    Lot([made]).unpack(room_of([torch.tensor([10.0, 11, 12, 13, 14, 15, 99])], [(0,)]), parameters)
    first, second = parameters["matrix"].grad, parameters["vector"].grad
    assert first is None and second is not None
    assert second.tolist() == [0, 14, 0, 15]
