"""Which configuration of a model was built, so that no figure is taken for another model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Size = Literal["small", "full"]
"""``full``: the model that people know by its name; ``small``: a few layers and small images, quick on a laptop."""

Origin = Literal["published", "default", "small", "file", "factory"]

_IN_WORDS: Mapping[Origin, str] = {
    "published": "published configuration",
    "default": "default configuration",
    "small": "small configuration",
    "file": "configuration of the file",
    "factory": "",
}


@dataclass(frozen=True)
class Configuration:
    """Where the sizes of a model come from.

    Args:
        origin: ``published`` for those of a well-known checkpoint or paper, ``default`` for the defaults of a
            configuration class that belong to no checkpoint we know, ``small``, ``file`` or ``factory``.
        source: the checkpoint, class or file that holds them.
        changes: the overrides, as ``key=value``.
        notes: remarks for the user about how the model was built.
    """

    origin: Origin
    source: str = ""
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns the origin with the overrides, such as ``published configuration with n_layer=2``."""
        changed = f" with {', '.join(self.changes)}" if self.changes else ""
        return f"{_IN_WORDS[self.origin]}{changed}"


FACTORY = Configuration("factory")


@dataclass(frozen=True)
class Loaded:
    """A model with the inputs to capture it with: a tuple of positional or a mapping of keyword arguments."""

    model: nn.Module
    example_inputs: Any
    configuration: Configuration = field(default=FACTORY)

    def describe(self, spec: str) -> str:
        """Returns one line, such as ``transformers:gpt2, published configuration, 124,439,808 parameters``."""
        return describe(spec, self.configuration, count_parameters(self.model), self.example_inputs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as plain data, for the JSON of a command."""
        return to_dict(self.configuration, count_parameters(self.model), self.example_inputs)


def describe(spec: str, configuration: Configuration, parameters: int | None, example_inputs: Any = None) -> str:
    """Returns one line about a model: its name, its configuration, its size, its source and its inputs."""
    count = "" if parameters is None else f"{parameters:,} parameters"
    head = ", ".join(part for part in (spec, configuration.describe(), count) if part)
    inputs = ", ".join(f"{name or 'input'} {'x'.join(map(str, shape))}" for name, shape in _shapes(example_inputs))
    return " · ".join(part for part in (head, configuration.source, inputs) if part)


def to_dict(configuration: Configuration, parameters: int | None, example_inputs: Any = None) -> dict[str, Any]:
    """Returns what `describe` says as plain data."""
    return {
        "origin": configuration.origin,
        "source": configuration.source or None,
        "changes": list(configuration.changes),
        "parameters": parameters,
        "inputs": [{"name": name or None, "shape": list(shape)} for name, shape in _shapes(example_inputs)],
    }


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameter elements; a tied parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _shapes(example_inputs: Any) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each input tensor; positional ones have an empty name."""
    if example_inputs is None:
        return []
    if hasattr(example_inputs, "shape"):
        return [("", tuple(example_inputs.shape))]
    named = example_inputs.items() if isinstance(example_inputs, Mapping) else (("", one) for one in example_inputs)
    return [(str(name), tuple(value.shape)) for name, value in named if hasattr(value, "shape")]
