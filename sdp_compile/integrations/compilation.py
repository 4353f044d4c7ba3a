"""Compiles the modules that a training framework hands over, with the options that its user gave once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sdp_compile.compiler import PolicyOrSchedule, sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.integrations.scheduling import with_steps
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.scaler import GradScaler

_OWN = ("model", "policy", "example_inputs", "workers", "rank", "group")


class Compilation:
    """The arguments of ``sdp.compile()`` that a user gave to a strategy.

    Args:
        policy: What is partitioned and how, as in `sdp_compile.compile`.
        example_inputs: Inputs of one training call, as in `sdp_compile.compile`; by default the
            ``example_input_array`` of what is compiled.
        options: Further keyword arguments of `sdp_compile.compile`.

    Raises:
        SDPError: If an option is unknown, or one that the strategy sets itself.
    """

    def __init__(self, policy: PolicyOrSchedule, example_inputs: Any, options: Mapping[str, Any] | None) -> None:
        known = [name for name in inspect.signature(sdp_compile).parameters if name not in _OWN]
        unknown = sorted(set(options or {}).difference(known))
        if unknown:
            raise SDPError(f"compile_options has no {unknown[0]!r}. It takes: {', '.join(known)}.")
        self._policy, self._example_inputs, self._options = policy, example_inputs, dict(options or {})

    def __call__(
        self,
        module: nn.Module,
        owner: nn.Module,
        device: torch.device,
        steps: Callable[[], float] = lambda: float("inf"),
    ) -> SDPModule:
        """Compiles a module. Collective.

        Args:
            module: The original, on the device where it trains.
            owner: The module whose ``example_input_array`` holds the example inputs, if none were given.
            device: Where the example inputs are moved to.
            steps: Returns the number of steps of the training, for a schedule that does not know it.

        Returns:
            This worker's subnetwork.

        Raises:
            SDPError: If there are no example inputs, or the module cannot be compiled.
        """
        inputs = self._example_inputs
        if inputs is None:
            inputs = getattr(owner, "example_input_array", None)
        if inputs is None:
            raise SDPError(
                f"SDPStrategy does not know what {type(module).__name__} is called with. Pass "
                f"SDPStrategy(example_inputs=...), or set example_input_array on the {type(owner).__name__}."
            )
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
        return sdp_compile(module, with_steps(self._policy, steps), inputs, **self._options)


def share_overflows(precision: Any) -> None:
    """Gives a precision plugin a loss scaler with which all workers skip a step together, if it has torch's own.

    Args:
        precision: The plugin, of Fabric or of the Trainer.
    """
    scaler = getattr(precision, "scaler", None)
    if type(scaler) is torch.amp.GradScaler:
        precision.scaler = GradScaler(scaler._device)
        precision.scaler.load_state_dict(scaler.state_dict())
