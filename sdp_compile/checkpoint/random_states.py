"""The states of all random number generators of this process."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sdp_compile.errors import SDPError


def random_states() -> dict[str, Any]:
    """Returns the states of Python's, NumPy's and PyTorch's generators, that of this process's accelerator included."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    accelerator = _accelerator()
    if accelerator is not None:
        states[accelerator] = torch.get_device_module(accelerator).get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Sets the generators to states that `random_states` returned; those of a device that is not here are left out.

    Raises:
        SDPError: If a state is not that of a generator.
    """
    try:
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        accelerator = _accelerator()
        if accelerator is not None and accelerator in states:
            torch.get_device_module(accelerator).set_rng_state(states[accelerator])
    except Exception as error:  # each generator has its own
        what = f"{type(error).__name__}: {error!s:.200}"
        raise SDPError(f"The checkpoint's random states are damaged: {what}. Load another checkpoint.") from error


def _accelerator() -> str | None:
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type
