"""What the interpreter does by itself while forward runs: collecting garbage, looking for modules."""

from __future__ import annotations

import gc
import sys
from typing import Any, ClassVar

import pytest
import torch

from sdp_compile.capture import capture
from tests.capture.python_models import Small

SEARCHES = 0


class Collector(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        gc.collect()
        return h


class Finder:
    """Counts the modules that Python looks for."""

    asked: ClassVar[int] = 0

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> None:
        global SEARCHES
        SEARCHES += 1
        cls.asked += 1


class Importing(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        import colorsys

        return h * colorsys.ONE_THIRD


def test_what_the_garbage_collector_calls_is_no_part_of_forward() -> None:
    started: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        started.append(phase)

    gc.callbacks.append(note)
    try:
        capture(Collector(), torch.randn(4, 5))
        assert note in gc.callbacks and gc.isenabled()
    finally:
        gc.callbacks.remove(note)


def test_what_finds_modules_is_no_part_of_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages with parts that load late put a finder of their own before Python's."""
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = Finder.asked
    captured = capture(Importing(), torch.randn(4, 5))
    assert Finder.asked > before
    reads = captured.programs["train"].reads
    assert {read.kind for read in reads if read.name != "default dtype"} == {"switch", "function"}
