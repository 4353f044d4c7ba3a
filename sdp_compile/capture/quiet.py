"""Runs the user's code without a trace: no output of failed attempts, random states as before."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what torch logs and prints about a failed attempt, such as whole graphs: our error explains it.

    What a successful attempt prints, such as the user's own ``print`` in a forward, appears afterwards.
    """
    out, err = io.StringIO(), io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        logging.disable(disabled)
    print(out.getvalue(), end="")
    print(err.getvalue(), end="", file=sys.stderr)


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restores the random states of torch (CPU), numpy and Python. Fake CUDA tensors draw no random numbers."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def random_states() -> tuple[Any, Any]:
    """Returns the states of Python's and NumPy's random generators, in a form that can be compared."""
    state: Any = np.random.get_state()
    return random.getstate(), (state[0], state[1].tobytes(), *state[2:])


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Stops the garbage collector and its callbacks, where torch collects by hand: what they do is not forward's."""
    collects, callbacks = gc.isenabled(), gc.callbacks[:]
    gc.disable()
    gc.callbacks.clear()
    try:
        yield
    finally:
        gc.callbacks.extend(callbacks)
        if collects:
            gc.enable()
