"""Models of the user's own functions: ``package.module:factory`` and ``path/to/file.py:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from sdp_compile.capture.diagnosis import first_line, user_line
from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.configuration import Loaded
from sdp_compile.models.words import FORMS


def factory_model(source: str, name: str) -> Loaded:
    """Calls the factory ``name`` of the module or file ``source``.

    Raises:
        SDPError: there is no such factory, it raises, or it does not return a model.
    """
    module = _module(source)
    factory = getattr(module, name, None)
    if factory is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SDPError(f"{source} has no {name!r}.{did_you_mean(name, known)}")
    if not callable(factory):
        raise SDPError(
            f"{source}:{name} is {type(factory).__name__}; it must be a function or class without arguments."
        )
    with _named(f"{source}:{name}"):
        made = factory()
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise SDPError(
            f"{source}:{name}() returned {type(made).__name__}; it must return a torch.nn.Module, or a pair of one and "
            "its example inputs."
        )
    return Loaded(model, example)


def _module(source: str) -> Any:
    if not source.endswith(".py"):
        sys.path.insert(0, "")
        try:
            with _named(source, missing=source):
                return importlib.import_module(source)
        finally:
            sys.path.remove("")
    path = Path(source).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SDPError(f"{source} cannot be imported as Python source.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent))
    try:
        with _named(source):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@contextmanager
def _named(what: str, missing: str = "") -> Iterator[None]:
    """Turns what the user's code raises into an `SDPError` that says which code and which line.

    ``missing`` is the module that the user named; where it does not exist, the message says how to name a model.
    """
    try:
        yield
    except SDPError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{missing}.".startswith(f"{error.name}."):
            raise SDPError(
                f"There is no module {error.name!r} here or on Python's path. MODEL is one of {FORMS}."
            ) from None
        trace = error.__traceback__
        where = user_line(trace and trace.tb_next)
        raise SDPError(f"{what} raised {first_line(error)}" + (f" at {where}" if where else "")) from error
