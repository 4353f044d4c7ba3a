"""Buckets are issued in their order, each when it and all earlier ones are complete."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.gradients.progress import Progress
from sdp_compile.runtime.levels.room import Room, room_of
from tests.runtime.gradients.alone import Noted, bucket, groups, slot

BUCKETS = [bucket(2, a=([0],), b=([0],)), bucket(5, b=([1],)), bucket(9, c=([0, 1],))]


class Followed:
    """The progress of three buckets; the gradients of a, b and c are 1, 2 and 3."""

    def __init__(self) -> None:
        self.parameters = {name: nn.Parameter(torch.zeros(2)) for name in "abc"}
        for value, parameter in enumerate(self.parameters.values(), start=1):
            parameter.grad = torch.full((2,), float(value))
        self.reduction = Noted()
        self.progress = Progress([slot(one) for one in BUCKETS], groups(), Noted())
        self.positions = self.progress.follow(self.parameters)
        self.progress.begin(self.reduction)


@pytest.fixture
def followed() -> Followed:
    return Followed()


STARTS: list[Any] = [("start", 2, [1, 2, 0]), ("start", 5, [2, 0]), ("start", 9, [3, 3, 0])]


def test_each_parameter_is_in_the_buckets_of_its_pieces(followed: Followed) -> None:
    a, b, c = followed.parameters.values()
    assert followed.positions == {a: [0], b: [0, 1], c: [2]}


def test_one_parameter_under_two_names_is_in_a_bucket_once() -> None:
    tied = nn.Parameter(torch.zeros(2))
    tied.grad = torch.ones(2)
    progress, reduction = Progress([slot(bucket(0, a=([0],), b=([1],)))], groups(), Noted()), Noted()
    assert progress.follow({"a": tied, "b": tied}) == {tied: [0]}
    progress.begin(reduction)
    progress.complete(0)
    assert progress.issued == [0]


def test_a_bucket_waits_for_its_gradients_and_for_earlier_buckets(followed: Followed) -> None:
    for position, issued in ((2, []), (0, []), (1, []), (0, [2, 5, 9])):
        followed.progress.complete(position)
        assert followed.progress.issued == issued
    assert followed.reduction.taken() == STARTS


def test_what_is_frozen_is_not_waited_for(followed: Followed) -> None:
    followed.parameters["a"].requires_grad_(False)
    followed.progress.begin(followed.reduction)
    followed.progress.complete(0)
    assert followed.progress.issued == [2]


def test_the_end_issues_the_rest_once(followed: Followed) -> None:
    followed.progress.complete(0)
    followed.progress.complete(0)
    followed.progress.start_all()
    assert followed.reduction.taken() == [*STARTS, "started all"]
    followed.progress.discard()
    assert followed.reduction.taken() == [("finish", 2), ("finish", 5), ("finish", 9)]
    followed.progress.begin(followed.reduction)
    assert followed.progress.issued == []


def test_a_launched_round_is_packed_at_once_and_issued_in_its_turn(followed: Followed) -> None:
    b = followed.parameters["b"]
    followed.progress.launch(5, {"b": torch.tensor([20.0, 30.0])})
    assert [followed.progress.has_packed(number) for number in (2, 5, 9)] == [False, True, False]
    assert b.grad is not None
    b.grad += torch.tensor([20.0, 30.0])
    followed.progress.start_all()
    assert followed.reduction.taken() == [("start", 2, [1, 22, 0]), ("start", 5, [32, 0]), STARTS[2], "started all"]
    followed.progress.check_unchanged()
    followed.progress.begin(followed.reduction)
    assert not followed.progress.has_packed(5)


def test_a_launched_gradient_may_change_afterwards(followed: Followed) -> None:
    followed.progress.start_all()
    followed.reduction.taken()
    followed.progress.begin(followed.reduction)
    followed.progress.launch(2, {})
    assert followed.progress.issued == [2]
    followed.parameters["a"].grad = None
    followed.progress.check_unchanged()


def test_what_was_launched_of_a_round_counts_once() -> None:
    """A parameter lies in two buckets of a round, and in the round before, which is packed once all is in ``.grad``."""
    pieces: list[Any] = [(0, {"a": ([0],), "c": ([0],)}), (1, {"a": ([1],)}), (1, {"a": ([0],), "b": ([0, 1],)})]
    buckets = [replace(bucket(number, **own), round=at) for number, (at, own) in enumerate(pieces)]
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in "abc"}
    progress, reduction = Progress([slot(one) for one in buckets], groups(), Noted()), Noted()
    progress.follow(parameters)
    assert [*progress.names(0)] == ["a", "c"] and [*progress.names(1)] == ["a", "b"] and [*progress.names(2)] == []
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    progress.begin(reduction)
    launched = {"a": torch.tensor([20.0, 30.0]), "b": torch.tensor([40.0, 50.0])}
    progress.launch(1, launched)
    assert reduction.taken() == []
    for name, positions in (("a", [0, 1, 2]), ("b", [2]), ("c", [0])):
        held = parameters[name].grad
        assert held is not None
        held += launched.get(name, torch.ones(2))
        for position in positions:
            progress.complete(position)
    assert reduction.taken() == [("start", 0, [21, 2, 0]), ("start", 1, [31, 0], [21, 41, 51, 0])]


def test_a_launched_gradient_is_not_kept(followed: Followed) -> None:
    """Autograd copies a gradient that others hold."""
    gradients = [torch.ones(2), torch.ones(2)]
    held = [weakref.ref(gradient) for gradient in gradients]
    followed.progress.launch(2, dict(zip("ab", gradients, strict=True)))
    gradients.clear()
    assert all(one() is None for one in held)


def test_a_round_that_cannot_be_packed_when_it_is_launched_is_sent_all_the_same(followed: Followed) -> None:
    """Peers wait for it."""
    followed.parameters["a"].grad = None
    with pytest.raises(SDPError, match="sparse"):
        followed.progress.launch(2, {"a": torch.ones(2).to_sparse(), "b": torch.ones(2)})
    followed.parameters["a"].grad = torch.ones(2).to_sparse()
    followed.progress.start_all(after_failure=True)
    assert followed.reduction.taken() == [("start", 2, [0, 0, 0]), *STARTS[1:], "started all"]


@pytest.mark.parametrize("change", ["in place", "replaced", "dropped"])
def test_another_gradient_may_not(followed: Followed, change: str) -> None:
    followed.progress.start_all()
    followed.reduction.taken()
    c = followed.parameters["c"]
    if change == "in place":
        assert c.grad is not None
        c.grad.mul_(2)
    else:
        c.grad = torch.full((2,), 3.0) if change == "replaced" else None
    with pytest.raises(SDPError, match=r"changed the gradient of 'c' after its averaging had started"):
        followed.progress.check_unchanged()
    assert followed.reduction.taken() == [("finish", 2), ("finish", 5), ("finish", 9)]


def test_once_checked_the_averages_may_be_written(followed: Followed) -> None:
    followed.progress.start_all()
    followed.progress.check_unchanged()
    followed.parameters["c"].grad = None
    followed.progress.check_unchanged()


class Elsewhere(Noted):
    """Returns averages in memory of its own."""

    def finish(self, number: int) -> Room:
        flats = self.rooms.pop(number).flats
        return room_of([10 * flat for flat in flats], [(0,)] * len(flats))


def test_averages_in_other_memory_than_the_packed_one_are_written() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    progress, reduction = Progress([slot(bucket(0, a=([0, 1, 2],)))], groups(), Elsewhere()), Elsewhere()
    progress.follow({"a": parameter})
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    progress.begin(reduction)
    progress.complete(0)
    progress.start_all()
    progress.write(progress.finished(), lambda owners: 1.0, lambda owners: 1.0)
    assert parameter.grad.tolist() == [10, 20, 30]
