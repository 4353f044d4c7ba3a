"""Renderables as plain text, as HTML, and as the recording of a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

PLAIN_WIDTH = 120
"""Columns of what is rendered without a terminal to ask."""

_PAGE = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,Consolas,monospace">{code}</pre>'
)


def text(renderable: RenderableType, width: int = PLAIN_WIDTH) -> str:
    """A renderable as plain text."""
    buffer = StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def html(renderable: RenderableType) -> str:
    """A renderable as a piece of HTML for a notebook."""
    return recorded(renderable, PLAIN_WIDTH).export_html(code_format=_PAGE, inline_styles=True)


def recorded(renderable: RenderableType, width: int) -> Console:
    """A console that has printed a renderable in full colour, ready to export it."""
    # In full colour whatever the standard output is, and whatever NO_COLOR says of it.
    console = Console(
        file=StringIO(),
        record=True,
        width=width,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        force_jupyter=False,
    )
    console.print(renderable)
    return console
