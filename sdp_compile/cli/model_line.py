"""The line that says which model a command is about, and how much memory its weights take."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sdp_compile.models.configuration import Configuration, Loaded


def model_line(description: str) -> Text:
    """Returns the line that `Loaded.describe` gives, for a terminal."""
    return Text(description, style="italic")


def tell_notes(configuration: Configuration) -> None:
    """Prints the remarks about how a model was built on standard error."""
    for note in configuration.notes:
        _tell(f"Note: {note}")


def tell_memory(loaded: Loaded, spec: str, bytes_each: int, what: str) -> None:
    """Prints on standard error how much memory the weights of a full-size model take.

    Args:
        loaded: the model, with or without weights.
        spec: its name on the command line.
        bytes_each: bytes per parameter.
        what: what these bytes hold.
    """
    from sdp_compile.formatting import size
    from sdp_compile.models.configuration import count_parameters

    total = size(bytes_each * count_parameters(loaded.model))
    _tell(f"{loaded.describe(spec)}: needs about {total} of memory, {bytes_each} bytes per parameter ({what}).")


def _tell(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
