"""Default arguments that calls of a function share are found by the frames of the calls."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sdp_compile.capture.defaults import Defaults

FRAMES: list[Any] = []


def plain(seen: list[int] = []) -> None:  # noqa: B006
    FRAMES.append(sys._getframe())


@functools.wraps(plain)
def wrapping() -> None:
    plain()


@functools.lru_cache
def cached(*, seen: dict[str, int] = {}) -> None:  # noqa: B006
    FRAMES.append(sys._getframe())


class Methods:
    def method(self, x: int, seen: set[int] = set()) -> None:  # noqa: B006
        FRAMES.append(sys._getframe())

    @classmethod
    def of_class(cls, seen: list[int] = []) -> None:  # noqa: B006
        FRAMES.append(sys._getframe())

    @staticmethod
    def static(seen: list[int] = []) -> None:  # noqa: B006
        FRAMES.append(sys._getframe())


def nested() -> Callable[[], None]:
    def inner(seen: list[int] = []) -> None:  # noqa: B006
        FRAMES.append(sys._getframe())

    return inner


@pytest.mark.parametrize(
    "call",
    [plain, wrapping, cached, lambda: Methods().method(1), Methods.of_class, Methods.static, nested(), nested()],
)
def test_a_shared_default_is_found(call: Callable[[], None]) -> None:
    FRAMES.clear()
    call()
    (found,) = Defaults().containers(FRAMES[0])
    assert found is FRAMES[0].f_locals["seen"]


@dataclass
class Record:
    seen: list[int]

    def __post_init__(self) -> None:
        FRAMES.append(sys._getframe(1))


class Decorated(Record):
    @functools.wraps(Record.__init__)
    def __init__(self, seen: list[int]) -> None:
        super().__init__(seen)


@pytest.mark.parametrize("kind", [Record, Decorated])
def test_generated_methods_are_found_by_their_objects(kind: type[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    FRAMES.clear()
    kind([])
    monkeypatch.setattr(gc, "get_objects", lambda: pytest.fail("looks at every object"))
    assert Defaults().containers(FRAMES[0]) == []


def test_a_container_of_the_caller_is_no_default() -> None:
    FRAMES.clear()
    plain([])
    Methods().method(1, set())
    nested()([])
    assert [Defaults().containers(frame) for frame in FRAMES] == [[], [], []]
