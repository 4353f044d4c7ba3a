"""The timeline of rounds: each goes through its phases, and different rounds are in different phases."""

from __future__ import annotations

from collections.abc import Sequence

from sdp_compile.planning.schedule import turns
from sdp_compile.simulator.reduction import Phase
from sdp_compile.simulator.timeline import Operation


def pipelined(rounds: Sequence[Sequence[Phase]], ready: Sequence[float]) -> list[Operation]:
    """Returns the operations of all rounds; each level has a stream of its own.

    When a round is ready, its first phase is issued, then the second one of the round before it, and so on. The last
    round is ready at the end of backward, when everything is issued.

    Args:
        rounds: The phases of each round; all rounds have equally many.
        ready: For each round, when it may begin.
    """
    last, operations = len(rounds) - 1, list[Operation]()
    places: dict[tuple[int, int], int] = {}
    for turn, number, phase in turns(len(rounds), len(rounds[0]) if rounds else 0):
        places[number, phase] = len(operations)
        cost = rounds[number][phase].cost
        before = (places[number, phase - 1],) if phase else ()
        issued = ready[min(turn, last)]
        operations.append(
            Operation(rounds[number][phase].level, cost.latency, cost.transfer, cost.crosses, issued, before)
        )
    return operations
