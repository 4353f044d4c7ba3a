"""Functions that ask for the truth of their argument; pytest would rewrite the assertions of a test file."""

from __future__ import annotations

import contextlib
import sys

import torch

from sdp_compile.capture.assertions import expected_truth, is_number_of_assertion


class Truth:
    """Asks what truth value is expected of it, and answers with that."""

    def __init__(self) -> None:
        self.expected: list[bool | None] = []

    def __bool__(self) -> bool:
        self.expected.append(expected_truth(sys._getframe(1)))
        return bool(self.expected[-1])


class Item:
    """Notes whether the number that it gives is one of an assertion."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def item(self) -> int:
        self.found.append(is_number_of_assertion(sys._getframe(1)))
        return 1


def asserted(t: Truth) -> None:
    assert t


def asserted_with_a_message(t: Truth) -> None:
    assert t, f"no {len(t.expected)}"


def asserted_not(t: Truth) -> None:
    assert not t


def both(t: Truth) -> None:
    assert t and t


def neither(t: Truth) -> None:
    assert not t and not t


def raised(t: Truth) -> None:
    if t:
        raise ValueError("bad")


def raised_without(t: Truth) -> None:
    if not t:
        message = "bad " + str(len(t.expected))
        raise ValueError(message)


def raised_by_either(t: Truth) -> None:
    if t or t:
        raise ValueError


def within(t: Truth) -> None:
    with contextlib.nullcontext():
        assert t


def branch(t: Truth) -> int:
    return 1 if t else 2


def alternative(t: Truth) -> None:
    assert t or len(t.expected) > 5


def caught(t: Truth) -> None:
    try:
        assert t
    except AssertionError:
        return


def finished(t: Truth) -> None:
    try:
        if t:
            raise ValueError
    finally:
        len(t.expected)


def item(t: Item) -> None:
    assert t.item()


def compared_item(t: Item) -> None:
    assert t.item() < 5, "too large"


def item_between(t: Item) -> None:
    low = -5
    if not low <= t.item():
        raise ValueError


def item_in_a_branch(t: Item) -> int:
    return 1 if t.item() < 5 else 2


def item_beside(t: Item) -> None:
    assert [t.item(), t is None][0]


def item_in_a_function(t: Item) -> None:
    assert abs(t.item()) < 5


def item_kept(t: Item) -> None:
    kept = t.item()
    assert kept < 5


def item_caught(t: Item) -> None:
    with contextlib.suppress(AssertionError):
        try:
            assert t.item() < 5
        except AssertionError:
            len(t.found)


def loop(t: Truth) -> None:
    while t:
        raise ValueError
    len(t.expected)


def finite(h: torch.Tensor) -> None:
    assert torch.isfinite(h).all()


def no_nan(h: torch.Tensor) -> None:
    if torch.isnan(h).any():
        raise ValueError("not a number")


def bounded(h: torch.Tensor) -> None:
    assert not torch.isnan(h).any() and h.abs().max() < 1e6, "too large"


def finite_item(h: torch.Tensor) -> None:
    assert torch.isfinite(h).all().item()


def bounded_item(h: torch.Tensor) -> None:
    assert not torch.isnan(h).any().item() and h.abs().max().item() <= 1e6, "too large"
