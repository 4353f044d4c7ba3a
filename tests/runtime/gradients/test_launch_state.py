"""When compiled graphs begin to launch reductions, and when they stop for good."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.runtime.gradients.launch_state import LaunchState


class Watched(LaunchState):
    """A state that notes which parameters are followed; ``certain`` is what the arrivals say."""

    def __init__(self) -> None:
        super().__init__()
        self.certain = True
        self.followed: list[Any] = []
        arrivals: Any = SimpleNamespace(follow=self.followed.append, are_certain=lambda parameters: self.certain)
        self.arrivals = arrivals


PARAMETERS = [nn.Parameter(torch.ones(1))]


def test_graphs_launch_once_a_graph_has_asked_on_every_worker() -> None:
    state = Watched()
    state.graph_asked = True
    state.decide(False, PARAMETERS)
    assert not state.graphs_launch and not state.graph_asked and state.followed == []
    state.decide(True, PARAMETERS)
    assert state.graphs_launch and state.followed == [PARAMETERS]
    for asked in (True, False):
        state.decide(asked, PARAMETERS)
        assert state.graphs_launch and state.followed == [PARAMETERS]


def test_parameters_are_followed_anew_once_a_graph_was_turned_away() -> None:
    state = Watched()
    state.decide(True, PARAMETERS)
    assert state.admits(PARAMETERS) and not state.graph_was_turned_away
    state.certain = False
    assert not state.admits(PARAMETERS) and state.graph_was_turned_away
    state.certain = True
    assert state.admits(PARAMETERS) and state.graph_was_turned_away
    state.decide(False, PARAMETERS)
    assert state.followed == [PARAMETERS, PARAMETERS] and not state.graph_was_turned_away
    state.decide(False, PARAMETERS)
    assert len(state.followed) == 2


def test_nothing_is_followed_before_graphs_launch() -> None:
    state = Watched()
    state.certain = False
    assert not state.admits(PARAMETERS)
    state.decide(False, PARAMETERS)
    assert state.followed == [] and not state.graph_was_turned_away


def test_after_an_incomplete_gradient_graphs_never_launch_again() -> None:
    state = Watched()
    state.decide(True, PARAMETERS)
    with pytest.warns(UserWarning, match="averaged after backward, not during it. Some parameters have other uses"):
        state.rule_out()
    assert not state.graphs_launch and state.ruled_out
    state.decide(True, PARAMETERS)
    assert not state.graphs_launch and len(state.followed) == 1
