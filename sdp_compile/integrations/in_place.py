"""Makes a module run its compiled subnetwork, while it stays the same object with its class's methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sdp_compile.runtime.module.sdp_module import SDPModule

CHILD = "sdp_module"
"""The name of the compiled module within the original."""


_SPECIAL = ("__len__", "__getitem__", "__iter__", "__contains__")


class CompiledInPlace(nn.Module):
    """Comes before the class of an original module that was compiled: its only child is the compiled module.

    What is not found on it is looked up there, so parts, parameters and ``full_model()`` have the names that they have
    on an `SDPModule`.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs this worker's subnetwork."""
        return self._modules[CHILD](*args, **kwargs)  # type: ignore[misc]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the worker's slices, as `SDPModule.state_dict` does."""
        return _child(self).state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads the worker's slices, as `SDPModule.load_state_dict` does."""
        return _child(self).load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if CHILD not in self.__dict__.get("_modules", ()):
                raise
            return getattr(_child(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Settings that the original's forward reads. Names with an underscore are those of frameworks.
        if not name.startswith("_") and name != "training" and hasattr(_child(self), name):
            setattr(_child(self), name, value)
        super().__setattr__(name, value)


def put_in_place(module: nn.Module, compiled: SDPModule) -> None:
    """Makes ``module`` run ``compiled``. Its own parameters, buffers and parts are let go.

    Args:
        module: The original.
        compiled: What it was compiled into.
    """
    for own in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"):
        getattr(module, own).clear()  # the compiled module has them, hooks of the original included
    module._modules[CHILD] = compiled
    kind = type(module)
    # Python does not look up special methods with __getattr__.
    special = {name: _forwarded(name) for name in _SPECIAL if hasattr(kind, name)}
    module.__class__ = type(kind.__name__, (CompiledInPlace, kind), {"__module__": kind.__module__, **special})


def compiled_of(module: nn.Module) -> SDPModule | None:
    """Returns the compiled module that ``module`` is or runs in its place; None if it was not compiled."""
    found = module if isinstance(module, SDPModule) else module._modules.get(CHILD)
    return found if isinstance(found, SDPModule) else None


def _forwarded(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(type(_child(self)), name)(_child(self), *args)


def _child(module: nn.Module) -> SDPModule:
    found = module._modules[CHILD]
    assert isinstance(found, SDPModule)
    return found
