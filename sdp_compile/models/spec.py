"""From the command line's MODEL to a model and its example inputs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdp_compile.errors import SDPError
from sdp_compile.models.inputs import example_inputs, parse_setting

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torchvision", "timm", "transformers")

FORMS = "torchvision:NAME, timm:NAME, transformers:TYPE, package.module:factory or path/to/file.py:factory"


@dataclass(frozen=True)
class Loaded:
    """A model with the inputs to capture it with: a tuple of positional or a mapping of keyword arguments."""

    model: nn.Module
    example_inputs: Any


def check_words(spec: str, inputs: Sequence[str], settings: Sequence[str]) -> None:
    """What can be told of the words alone, before torch is imported. Raises `SDPError`."""
    from sdp_compile.models.inputs import parse_input

    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise SDPError(f"{spec!r} names no model; write it as {FORMS}.")
    for text in inputs:
        parse_input(text)
    for text in settings:
        parse_setting(text)
    if settings and source != "transformers":
        raise SDPError(
            f"--set {settings[0]} changes a transformers configuration, and {spec} has none; leave it out, or put the "
            "change into a factory of your own."
        )
    if source.endswith(".py") and not Path(source).is_file():
        raise SDPError(f"{source}: there is no such file.")


def load(spec: str, inputs: Sequence[str] = (), settings: Sequence[str] = ()) -> Loaded:
    """The model that ``spec`` names. ``inputs`` are SHAPE[:DTYPE] or NAME=SHAPE[:DTYPE], ``settings`` key=value.

    Raises `SDPError` that names the word that does not fit, with close matches.
    """
    check_words(spec, inputs, settings)
    source, _, name = spec.rpartition(":")
    if source in LIBRARIES:
        loaded = _from_library(source, name, dict(map(parse_setting, settings)))
    else:
        loaded = _from_factory(source, name)
    return Loaded(loaded.model, example_inputs(inputs)) if inputs else loaded


def _from_library(library: str, name: str, settings: Mapping[str, Any]) -> Loaded:
    if importlib.util.find_spec(library) is None:
        raise SDPError(
            f"{library}:{name} needs {library}, which is not installed here: pip install 'sdp-compile[zoo]', or pip "
            f"install {library}."
        )
    if library == "transformers":
        from sdp_compile.models.language import transformers_model

        return Loaded(*transformers_model(name, settings))
    from sdp_compile.models.vision import timm_model, torchvision_model

    return Loaded(*(timm_model if library == "timm" else torchvision_model)(name))


def _from_factory(source: str, name: str) -> Loaded:
    """The model of a user's own function. What it raises is shown with its line."""
    from torch import nn

    from sdp_compile.errors import did_you_mean

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


class _named:
    """Turns what the user's code raises into an `SDPError` that says which code and which line."""

    def __init__(self, what: str, missing: str = "") -> None:
        self.what, self.missing = what, missing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, SDPError):
            return
        if isinstance(error, ModuleNotFoundError) and error.name and f"{self.missing}.".startswith(f"{error.name}."):
            raise SDPError(
                f"There is no module {error.name!r} here or on Python's path. MODEL is one of {FORMS}."
            ) from None
        from sdp_compile.capture.diagnosis import first_line, user_line

        where = user_line(trace.tb_next)
        raise SDPError(f"{self.what} raised {first_line(error)}" + (f" at {where}" if where else "")) from error


def check_inputs(spec: str, model: nn.Module) -> None:
    """Raises `SDPError` where a model without example inputs needs some, in the command line's own words."""
    import inspect

    from sdp_compile.capture.inputs import example_call

    try:
        example_call(model, None)
    except SDPError:
        raise SDPError(
            f"{spec} has no example inputs: forward{inspect.signature(model.forward)}. Return a pair of the model and "
            "its inputs, or name them with --input SHAPE[:DTYPE], such as --input 2x3x64x64."
        ) from None
