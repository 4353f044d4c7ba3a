"""What the user's code could do with the value of a number where no `Traced` float sees it."""

from __future__ import annotations

import contextlib
import dis
import math
import re
from collections.abc import Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

from sdp_compile.capture.traced import MATH, traced_math

Functions = Mapping[CodeType, dict[str, Any]]
"""The code of functions, with their global variables."""

_OPAQUE = frozenset(
    "array cmath cupy ctypes decimal fractions jax json marshal mpmath numba numpy pandas pickle scipy statistics "
    "struct sympy".split()
)
"""Packages that read the value of a float where nothing sees it."""

_READERS = ("type", "complex")  # built-in functions that do so
_FORMAT = re.compile(r"%[-+#0]*\d*(?:\.\d+)?[diouxXeEfFgG]")  # as in "%.2f" % number


def escapes(functions: Functions | None) -> bool:
    """Whether one of the functions that forward runs could read the value of a number, or ask for its type."""
    if functions is None:
        return True
    if any(isinstance(text, str) and _FORMAT.search(text) for code in functions for text in code.co_consts):
        return True
    for _scope, name, value in _loaded(functions):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        home = type(value).__module__ if home is None else home  # such as a ufunc of numpy
        if str(home).partition(".")[0] in _OPAQUE or (name in _READERS and value is None):
            return True
    return False


def _loaded(functions: Functions) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yields the scope, the name and the value of each global variable that functions load."""
    for code, scope in functions.items():
        for name in {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}:
            yield scope, name, scope.get(name)


@contextlib.contextmanager
def following_math(functions: Functions) -> Iterator[None]:
    """Lets the functions call those of `math` with traced numbers."""
    module = ModuleType("math")
    vars(module).update(vars(math))
    vars(module).update({name: traced_math(value) for name, value in vars(math).items() if id(value) in MATH})
    undo = [found for found in _loaded(functions) if found[2] is math or id(found[2]) in MATH]
    try:
        for scope, name, value in undo:
            scope[name] = module if value is math else getattr(module, value.__name__)
        yield
    finally:
        for scope, name, value in undo:
            scope[name] = value
