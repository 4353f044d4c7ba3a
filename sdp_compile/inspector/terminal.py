"""Renders for a terminal, as plain text and as HTML."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

PLAIN_WIDTH = 120
"""Width of the output, in columns, without a terminal."""

_PAGE = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,Consolas,monospace">{code}</pre>'
)


def text(renderable: RenderableType, width: int = PLAIN_WIDTH) -> str:
    """Renders plain text, ``width`` columns wide."""
    buffer = StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def html(renderable: RenderableType) -> str:
    """Renders a piece of HTML for a notebook."""
    return recorded(renderable, PLAIN_WIDTH).export_html(code_format=_PAGE, inline_styles=True)


def recorded(renderable: RenderableType, width: int) -> Console:
    """Returns a console that has printed a renderable in colour and can export it."""
    # Always in colour, independent of the standard output and NO_COLOR.
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
