"""Whether backward averages gradients, and whether compiled graphs launch reductions, which all workers decide."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from sdp_compile.runtime.gradients.arrivals import Arrivals


class Switch:
    """Whether backward averages gradients.

    Attributes:
        is_on: Whether it does now.
    """

    def __init__(self) -> None:
        self.is_on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within this context, it is off."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before


class LaunchState:
    """Whether compiled graphs may launch reductions, and what they tried since the last decision.

    Attributes:
        arrivals: Compares what was launched with the gradients that arrive.
        graphs_launch: Whether graphs launch; the same on all workers.
        graph_asked: Whether a graph has asked to launch since the last decision.
        graph_was_turned_away: Whether a graph could not launch since the last decision, because its parameters are not
            followed or will get no gradient.
        ruled_out: Whether a launched gradient was ever incomplete; graphs then never launch again.
    """

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.graphs_launch = False
        self.graph_asked = False
        self.graph_was_turned_away = False
        self.ruled_out = False

    def admits(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether a graph may launch the gradients of these parameters in the current backward."""
        result = self.arrivals.are_certain(parameters)
        self.graph_was_turned_away |= not result
        return result

    def rule_out(self) -> None:
        """Stops launching for good and tells the user, after a launched gradient was incomplete on any worker."""
        self.ruled_out, self.graphs_launch = True, False
        warnings.warn(
            "From now on gradients are averaged after backward, not during it. Some parameters have other uses than in "
            "one call of the compiled model (a penalty on the weights, or several forward calls per backward), so its "
            "graph cannot tell when their gradients are complete.",
            stacklevel=3,
        )

    def decide(self, all_graphs_asked: bool, parameters: Iterable[nn.Parameter]) -> None:
        """Decides about the next backward passes; ``all_graphs_asked`` says whether a graph asked on every worker."""
        begins = all_graphs_asked and not (self.graphs_launch or self.ruled_out)
        self.graphs_launch |= begins
        if self.graphs_launch and (begins or self.graph_was_turned_away):
            self.arrivals.follow(parameters)
        self.graph_asked = self.graph_was_turned_away = False
