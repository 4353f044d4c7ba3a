"""What the workers do, as text for errors, and whether they wait for each other without end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sdp_compile.runtime.waiting.state import State

ADVICE = (
    "All workers must make the same calls in the same order: backward passes, steps, clipping and collectives. If they "
    "have uneven numbers of batches, the case for which DDP has `Join`, stop at the smallest number or repeat some "
    "batches."
)


def workers_text(ranks: Iterable[int]) -> str:
    """Returns "worker 3" or "workers 0, 1, 2"; of many workers it names the first ones."""
    numbers = sorted(ranks)
    shown = ", ".join(map(str, numbers[:16])) + (f" and {len(numbers) - 16} more" if len(numbers) > 16 else "")
    return f"worker {shown}" if len(numbers) == 1 else f"workers {shown}"


def places(states: Mapping[int, State], asked: int) -> str:
    """Returns what each worker does, one line for those that do the same.

    Args:
        states: The last answer of each worker.
        asked: The number of the question; a worker with an earlier answer has not answered it.
    """
    workers: dict[str, list[int]] = {}
    for rank, state in states.items():
        silent = "no answer: its process has ended without a word, or is busy outside Python"
        text = state.left or (state.doing if state.asked >= asked else silent)
        workers.setdefault(text, []).append(rank)
    return "\n".join(f"  {workers_text(ranks)}: {text}" for text, ranks in workers.items())


def stalled(states: Mapping[int, State], members: Sequence[int], asked: int, limit: float) -> str:
    """Returns why a wait cannot end, as an error; empty if it may.

    Args:
        states: The last answer of each worker.
        members: The workers that must take part.
        asked: The number of the question.
        limit: After how many seconds workers that all wait, but not in one collective, wait for each other.
    """
    gone = [rank for rank in members if states[rank].left]
    if gone:
        reason = f"{workers_text(gone)} will not come"
    elif (
        all(state.left or (state.asked >= asked and state.call and state.seconds >= limit) for state in states.values())
        and len({state.call for state in states.values() if not state.left}) > 1
    ):
        reason = f"the workers have waited for each other for {limit:.0f} s in different places"
    else:
        return ""
    return f"The workers cannot go on, because {reason}:\n{places(states, asked)}\n{ADVICE}"
