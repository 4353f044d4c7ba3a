"""The gradient engine of one worker, and what it tells the others."""

from __future__ import annotations

from typing import Any

import pytest

from sdp_compile.runtime.comm.agreement import Flags
from sdp_compile.runtime.gradients import engine as source
from tests.runtime.gradients.one_engine import Engine


class Met:
    """Stands for a meeting of workers that agree."""

    def __init__(self, *_: object) -> None: ...

    def is_agreed(self) -> bool:
        return True

    def finish(self) -> bool:
        return False


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Flags]:
    """What the worker tells the others, who say the same."""
    result: list[Flags] = []

    def agree(flags: Flags, groups: Any) -> Flags:
        result.append(flags)
        return flags

    monkeypatch.setattr(source, "agree", agree)
    monkeypatch.setattr(source, "Meeting", Met)
    return result


@pytest.fixture
def engine(seen: list[Flags]) -> Engine:
    return Engine()
