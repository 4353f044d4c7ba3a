"""Local workers that are started again after one of them was lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from sdp_compile.processes import WorkerFailure, interruptible, launch


def launch_again(
    command: Callable[[int, int], Sequence[str]],
    workers: int,
    restarts: int,
    least: int | None,
    tell: Callable[[str], None],
    hand_on: bool = False,
) -> int:
    """Runs workers as `launch` does, and starts all of them again when one was lost.

    An error that the user has to correct is final, and so is the first failure after a notice.

    Args:
        command: Returns the command, given the number of workers and how often they were started before.
        workers: How many to start.
        restarts: How often to start them again.
        least: Each restart leaves out those that were ended by a signal, but starts at least so many; None always
            starts as many as at first.
        tell: Called before each restart with what happened and what comes, in words.
        hand_on: Whether the first notice goes to the workers, which save and stop.

    Returns:
        What `launch` returns.

    Raises:
        WorkerFailure: The failure that is final.
        KeyboardInterrupt: If the run is to end and nothing can be saved.
    """
    with interruptible(signal.SIGUSR1):  # also between two attempts
        for restart in range(restarts + 1):
            try:
                return launch(command(workers, restart), workers, hand_on)
            except WorkerFailure as failure:
                if restart == restarts or not failure.may_pass:
                    raise
                if least is not None:
                    workers = max(least, workers - len(failure.killed))
                tell(f"{failure}. Restart {restart + 1} of {restarts}, with {workers} workers.")
    raise AssertionError("restarts is negative")
