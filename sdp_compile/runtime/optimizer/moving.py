"""Moves an optimizer that was built before compiling to the compiled module."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.runtime.optimizer.full_state import sliced
from sdp_compile.runtime.optimizer.originals import compiled_from
from sdp_compile.runtime.subnetwork import Subnetwork


def move_to_compiled(optimizer: Optimizer) -> None:
    """Gives an optimizer of an original model the compiled module's parameters, and its slices of the state.

    Groups and options stay. Parameters of which this worker holds nothing are left out; those of models that were not
    compiled stay as they are.

    Args:
        optimizer: The optimizer, which is changed in place.
    """
    for group in optimizer.param_groups:
        moved: list[tuple[Any, str | None]] = []
        names = group.get("param_names", [None] * len(group["params"]))
        for parameter, name in zip(group["params"], names, strict=True):
            module, own = compiled_from(parameter)
            if not isinstance(module, Subnetwork):
                moved.append((parameter, name))
                continue
            state: dict[str, Any] = optimizer.state.pop(parameter, {})
            compiled: Tensor | None = module.get_parameter(own) if module.holdings.region_of(own) is not None else None
            if compiled is not None:
                moved.append((compiled, name))
                if state:
                    optimizer.state[compiled] = sliced(own, state, module.holdings)
        group["params"] = [parameter for parameter, _ in moved]
        if "param_names" in group:
            group["param_names"] = [name for _, name in moved]
