"""What forward reads besides tensors: a graph holds the values that they had at capture."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from torch import nn

from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING, frozen, with_free

ReadKind = Literal["attribute", "switch", "buffer", "global", "environment"]

SWITCHES = frozenset({"training", "_forward_hooks", "_forward_pre_hooks"})
"""What `torch.nn.Module` itself keeps and a graph depends on."""


@dataclass(frozen=True)
class Read:
    """One Python value that forward read.

    Attributes:
        kind: An attribute of a module, a switch that `torch.nn.Module` itself keeps (its mode or its forward hooks),
            the value of a buffer with one element, a global variable or an environment variable.
        owner: The path of the module, what `owner_of` calls the Python module of the global variable, or ``""``.
        name: The name in it; of a buffer the full name.
        value: The frozen value.
        free: The paths to the floats in it that may change, as in `sdp_compile.ir.numbers.Place`.
    """

    kind: ReadKind
    owner: str
    name: str
    value: Any
    free: tuple[tuple[str | int, ...], ...] = ()

    def now(self, model: nn.Module) -> Any:
        """Returns the value that forward would read now, `MISSING` if there is none.

        Args:
            model: The model, or its skeleton; for a buffer, a module that holds the buffer's value.
        """
        if self.kind == "environment":
            return os.environ.get(self.name)
        if self.kind == "global":
            return scope_of(self.owner).get(self.name, MISSING)
        if self.kind == "buffer":
            return model.get_buffer(self.name).item()
        if self.kind == "switch":
            return switch(submodule(model, self.owner), self.name)
        return getattr(submodule(model, self.owner), self.name, MISSING)

    def __str__(self) -> str:
        if self.kind == "environment":
            return f"environment variable {self.name}"
        if self.kind == "buffer":
            return f"the value of buffer {self.name!r}"
        if self.kind == "switch":
            what = "mode" if self.name == "training" else "forward hooks"
            return f"the {what} of {f'module {self.owner!r}' if self.owner else 'the model'}"
        where = f" of module {self.owner!r}" if self.kind == "attribute" and self.owner else ""
        where = f" of {self.owner.partition('#')[0]}" if self.kind == "global" else where
        return f"{'global variable' if self.kind == 'global' else 'attribute'} {self.name!r}{where}"


def switch(module: nn.Module, name: str) -> bool | tuple[int, ...]:
    """Returns the value of one of `SWITCHES`: the mode, or the numbers of the hooks."""
    value = vars(module)[name]
    return value if isinstance(value, bool) else tuple(value)


def changed_read(reads: Iterable[Read], model: nn.Module) -> Read | None:
    """Returns the first read that would give another value now, or None.

    Args:
        reads: What forward read.
        model: See `Read.now`.
    """
    known: dict[int, Any] = {}  # many modules read one configuration
    for read in reads:
        value = read.now(model)
        if id(value) not in known:
            known[id(value)] = frozen(value), value  # kept, so that no other value gets its identity
        now = known[id(value)][0]
        for path in read.free:
            now = with_free(now, path)
        if now != read.value:
            return read
    return None


_other_scopes: dict[str, Mapping[str, Any]] = {}


def owner_of(module: str, scope: Mapping[str, Any]) -> str:
    """Returns a name by which a `Read` finds the variables of a scope again.

    Args:
        module: The name that the scope has for itself.
        scope: The global variables of a function. They are not those of the module of that name if the function was
            made by ``exec``, or if a package has put another object in its place.
    """
    if _variables(sys.modules.get(module)) is scope:
        return module
    for name, known in _other_scopes.items():
        if known is scope:
            return name
    name = f"{module}#{len(_other_scopes)}"
    _other_scopes[name] = scope
    return name


def scope_of(owner: str) -> Mapping[str, Any]:
    """Returns the variables that `owner_of` gave the name ``owner``."""
    return _other_scopes[owner] if owner in _other_scopes else _variables(sys.modules.get(owner))


def _variables(module: ModuleType | None) -> Mapping[str, Any]:
    return getattr(module, "__dict__", {})
