"""What MkDocs does beside converting pages: the command line page is written from the commands themselves."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.cli import get_docs_for_click

from sdp_compile.cli.main import app

PAGE = "reference/command-line.md"
PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the source of each page; returns what is converted instead."""
    return markdown.replace(PLACE, command_reference()) if page.file.src_uri == PAGE else markdown


def command_reference() -> str:
    """Returns the help of all commands as Markdown, one second-level section per command."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="sdp-compile")
    text = get_docs_for_click(obj=command, ctx=context, name="sdp-compile")
    body = text.partition("\n")[2]  # the page has its own title
    return _as_blocks(re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", body))


def _as_blocks(text: str) -> str:
    """Lines that help indents by two spaces, such as examples, become code blocks."""
    result: list[str] = []
    for line in text.splitlines():
        indented = line.startswith("  ")
        if indented and result and result[-1] and not result[-1].startswith("    "):
            result.append("")
        result.append(f"    {line[2:]}" if indented else line)
    return "\n".join(result)
