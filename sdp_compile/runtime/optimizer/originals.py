"""Finds the compiled module of an original's parameter, and notices an optimizer of them, which would train nothing."""

from __future__ import annotations

import weakref

from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from sdp_compile.errors import SDPError

_compiled: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The compiled module, as a weak reference, and the parameter's name in it, by parameter of the original model."""

_replaced: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The names of parameters in whose place a module holds others since it got another plan."""


def remember_original(model: nn.Module, module: nn.Module) -> None:
    """Notes that ``model`` was compiled into ``module``, whose parameters are others."""
    reference = weakref.ref(module)
    for name, parameter in model.named_parameters():
        _compiled[parameter] = reference, name


def remember_replaced(parameter: nn.Parameter, name: str) -> None:
    """Notes that a compiled module holds another object in place of a parameter since it got another plan."""
    _replaced[parameter] = name


def refuse_replaced(optimizer: Optimizer) -> None:
    """Raises `SDPError` if an optimizer holds parameters that were replaced, which it would step for nothing."""
    for group in optimizer.param_groups if len(_replaced) else ():
        for parameter in group["params"]:
            if parameter in _replaced:
                raise SDPError(
                    f"{type(optimizer).__name__} holds {_replaced[parameter]!r} as it was before model.replan(), so it "
                    "would train nothing. Pass the optimizer to replan(), or build another one."
                )


def compiled_from(parameter: nn.Parameter) -> tuple[nn.Module | None, str]:
    """Returns the module that the model of a parameter was compiled into, if it still exists, and the name in it."""
    reference, name = _compiled.get(parameter, (None, ""))
    return None if reference is None else reference(), name


def refuse_original(optimizer: Optimizer) -> None:
    """Raises `SDPError` if only the compiled module has gradients and ``optimizer`` holds the original's parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter.grad is not None for parameter in parameters):
        return  # the original is trained too
    for parameter in parameters:
        module, _ = compiled_from(parameter)
        if module is not None and any(own.grad is not None for own in module.parameters()):
            raise SDPError(
                f"{type(optimizer).__name__} was given the parameters of the original model, which have no gradients, "
                "so it would train nothing. Build it after sdp.compile(), from the parameters of the compiled model."
            )
