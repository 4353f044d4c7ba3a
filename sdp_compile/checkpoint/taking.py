"""Hands saved states over to the objects that had them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.runtime.optimizer.full_state import numbered
from sdp_compile.runtime.optimizer.param_groups import keep_dtypes
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer


def load_optimizer(
    optimizer: Optimizer,
    groups: list[dict[str, Any]],
    states: Mapping[str, Mapping[str, Any]],
    keeps_dtypes: bool = False,
) -> None:
    """Gives an optimizer its groups, with names in place of parameters, and this worker's slices of its states.

    Args:
        optimizer: The optimizer.
        groups: Its groups.
        states: The states by parameter.
        keeps_dtypes: Whether states keep their dtypes; by default they get those of their parameters.

    Raises:
        SDPError: If it cannot take them.
    """
    with taking(optimizer):
        if isinstance(optimizer, ShardedOptimizer):
            optimizer.load_slices(groups, states, keeps_dtypes)
        else:
            state = numbered(groups, dict(states))
            optimizer.load_state_dict(state)
            if keeps_dtypes:
                keep_dtypes(optimizer, state["state"])


@contextmanager
def taking(taker: Any) -> Iterator[None]:
    """Says which object could not take its saved state."""
    try:
        yield
    except SDPError:
        raise
    except Exception as error:
        raise SDPError(
            f"{type(taker).__name__} cannot take its saved state: {type(error).__name__}: {error}. Build it with the "
            "options of the saved one, or load another checkpoint."
        ) from error
