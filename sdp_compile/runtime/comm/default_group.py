"""Lets the default process group end when it is destroyed."""

from __future__ import annotations

from inspect import isfunction

import torch.distributed as dist
from torch.distributed.nn import functional


def keep_no_default_group() -> None:
    """Takes the default process group out of the default arguments of `torch.distributed.nn.functional`.

    They are that of the moment in which the module is imported. TorchDynamo imports it, usually when the group exists
    already. `destroy_process_group` would leave its threads and connections then, and a later default group would not
    be used. None means the default group of the moment of the call.
    """
    for function in vars(functional).values():
        if isfunction(function) and function.__defaults__:
            function.__defaults__ = tuple(
                None if isinstance(value, dist.ProcessGroup) else value for value in function.__defaults__
            )
