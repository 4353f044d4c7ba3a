"""Runs several errands along the same levels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdp_compile.runtime.comm.streams import Pending, Step


class Pipeline:
    """Overlaps the steps of errands that are sent one after the other.

    When an errand is sent, its first step is issued, then the second one of the errand before it, and so on. So each
    step finds its level idle, and what it works on has mostly arrived. The order of collectives follows from the order
    of the errands alone. Each worker sends the same errands, also those in which it has nothing to send.
    """

    def __init__(self) -> None:
        self._states: list[Sequence[Tensor] | Pending] = []
        self._left: list[list[Step]] = []
        self._devices: list[torch.device] = []

    def __len__(self) -> int:
        return len(self._states)

    def send(self, steps: Sequence[Step], tensors: Sequence[Tensor], device: torch.device) -> int:
        """Sends an errand.

        Args:
            steps: Its steps.
            tensors: What it takes along, on one device.
            device: That device.

        Returns:
            The number of the errand.
        """
        self._states.append(tensors)
        self._left.append(list(steps))
        self._devices.append(device)
        self._advance()
        return len(self._states) - 1

    def drain(self) -> None:
        """Issues everything that is not issued yet."""
        while any(self._left):
            self._advance()

    def results(self, number: int) -> Sequence[Tensor]:
        """Waits for an errand whose steps are all issued, and returns its tensors."""
        state = self._states[number]
        return state.results() if isinstance(state, Pending) else state

    def forget(self, number: int) -> None:
        """Drops the tensors of an errand whose results nobody needs any more."""
        self._states[number] = ()

    def has_arrived(self, number: int) -> bool:
        """Whether all steps of an errand are issued."""
        return not self._left[number]

    def _advance(self) -> None:
        for number in reversed(range(len(self._left))):
            if self._left[number]:
                step = self._left[number].pop(0)
                self._states[number] = Pending(step, self._states[number], self._devices[number])
