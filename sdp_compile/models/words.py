"""MODEL, ``--input`` and ``--set`` as the command line has them, checked before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdp_compile.errors import SDPError
from sdp_compile.models.configuration import Size
from sdp_compile.models.inputs import parse_input, parse_setting

LIBRARIES = ("torchvision", "timm", "transformers")

FORMS = (
    "torchvision:NAME, timm:NAME, transformers:TYPE, transformers:ORG/NAME (on the Hugging Face hub), a folder with a "
    "transformers config.json, package.module:factory or path/to/file.py:factory"
)


@dataclass(frozen=True)
class ModelWords:
    """A parsed MODEL: a model of a library, a transformers configuration file, or a factory."""

    kind: Literal["library", "file", "factory"]
    source: str
    name: str = ""

    @property
    def has_configuration(self) -> bool:
        """Whether ``--set`` can change it."""
        return self.kind == "file" or self.source == "transformers"


def parse_model(spec: str) -> ModelWords:
    """Parses a MODEL. Raises `SDPError` where it has none of the forms, or names a file that does not exist."""
    path = Path(spec)
    if path.is_dir() or path.suffix == ".json" or spec.endswith(os.sep):
        file = path if path.suffix == ".json" else path / "config.json"
        if not file.is_file():
            raise SDPError(f"{spec}: there is no file {file}. MODEL is one of {FORMS}.")
        return ModelWords("file", spec)
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise SDPError(f"{spec!r} does not name a model. MODEL is one of {FORMS}.")
    if source in LIBRARIES:
        return ModelWords("library", source, name)
    if source.endswith(".py") and not Path(source).is_file():
        raise SDPError(f"{source}: no such file.")
    return ModelWords("factory", source, name)


def check_words(spec: str, inputs: Sequence[str] = (), settings: Sequence[str] = (), size: Size | None = None) -> None:
    """Checks what can be told from the words alone. Raises `SDPError`."""
    words = parse_model(spec)
    for text in inputs:
        parse_input(text)
    for text in settings:
        parse_setting(text)
    if settings and not words.has_configuration:
        raise SDPError(
            f"--set {settings[0]} changes a transformers configuration, and {spec} has none; leave it out, or put the "
            "change into a factory of your own."
        )
    if size is not None and words.kind == "factory":
        raise SDPError(f"--{size} chooses a configuration by name, and {spec} is a factory; leave it out.")
