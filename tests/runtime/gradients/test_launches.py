"""Reductions that a graph launches inside of backward: which the engine takes, and which it must do again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdp_compile.runtime.comm.agreement import Flags
from tests.runtime.gradients.alone import Launch
from tests.runtime.gradients.one_engine import AT_THE_END, BY_A_GRAPH, BY_A_HOOK, FINISHES, Engine


def launching(engine: Engine, number: int, *names: str, times: int = 1) -> Any:
    """A term of the loss: in backward, a graph with these parameters launches a round."""
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(times):
        parameters = [engine.three.get_parameter(name) for name in names]
        for parameter in Launch.apply(lambda *gradients: engine.launch(number, gradients), *parameters):
            total = total + parameter
    return total


def only(engine: Engine, loss: Tensor) -> None:
    """A backward of this loss alone, on fresh gradients."""
    engine.three.zero_grad()
    engine.during.clear()
    engine.noted.taken()
    loss.sum().backward()


def test_a_graph_launches_after_the_workers_have_agreed(engine: Engine, seen: list[Flags]) -> None:
    only(engine, launching(engine, 2, "a", "b"))
    assert engine.during == [AT_THE_END] * 3 and not seen[0].no_graph_asked
    only(engine, launching(engine, 2, "a", "b"))
    assert engine.during == [BY_A_GRAPH, BY_A_HOOK, AT_THE_END]
    assert engine.noted.taken()[0] == ("start", 2, [1, 1, 0])
    assert engine.gradients() == [[10, 1], [10, 10], [0, 0]]
    for _ in range(3):
        only(engine, launching(engine, 2, "a", "b"))
    assert len(seen) == 5  # where graphs launch, the workers agree each time
    assert not any(flags.launch_was_incomplete for flags in seen)


def test_launches_that_are_not_of_a_whole_round_are_left_to_the_end(engine: Engine, seen: list[Flags]) -> None:
    only(engine, launching(engine, 2, "a", "b"))
    for number, names in ((2, ("a",)), (4, ("a",)), (9, ("a", "b"))):
        only(engine, launching(engine, number, *names))
        assert BY_A_GRAPH not in engine.during and engine.gradients()[0] == [10, 1]
    engine.three.zero_grad()
    engine.noted.taken()
    with engine.no_sync():
        launching(engine, 2, "a", "b").sum().backward()
    assert engine.noted.taken() == [] and engine.gradients() == [[1, 1], [1, 1], None]


def test_a_frozen_parameter_does_not_keep_a_round_from_its_launch(engine: Engine, seen: list[Flags]) -> None:
    engine.three.b.requires_grad_(False)
    for expected in (AT_THE_END, BY_A_GRAPH):
        only(engine, launching(engine, 2, "a", "b"))
        assert engine.during[0] == expected and engine.gradients() == [[10, 1], None, [0, 0]]


@pytest.mark.parametrize("other_use", ["a second call", "a penalty"])
def test_an_incomplete_launch_is_reduced_again(engine: Engine, seen: list[Flags], other_use: str) -> None:
    only(engine, launching(engine, 2, "a", "b"))
    twice = other_use == "a second call"
    loss = launching(engine, 2, "a", "b", times=2 if twice else 1)
    with pytest.warns(UserWarning, match="other uses"):
        only(engine, loss if twice else loss + engine.three.a + engine.three.b)
    assert seen[1].launch_was_incomplete
    assert engine.gradients() == [[20, 2], [20, 20], [0, 0]]
    calls = engine.noted.taken()
    again: list[Any] = [("start", 2, [2, 2, 0]), ("start", 5, [2, 0]), ("start", 9, [0, 0, 0]), "started all"]
    assert calls[-10:] == [*FINISHES, *again, *FINISHES]
    only(engine, launching(engine, 2, "a", "b"))
    assert engine.during[0] == BY_A_HOOK and engine.gradients() == [[10, 1], [10, 10], [0, 0]]
