"""Lines of two columns for any width: wrapped code on the left, aligned figures on the right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

HANGING = 4
"""Indentation, in columns, of the continuation of a wrapped line."""


@dataclass(frozen=True)
class Line:
    """``left`` after ``indent`` columns (wrapped if ``whole``, else cut), and ``right`` at the right margin."""

    left: Text
    right: Text = field(default_factory=Text)
    indent: int = 0
    whole: bool = True


class Lines:
    """Lines below each other. Much faster than a table, and no column is wider than its longest entry."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        right = min(max((cell_len(line.right.plain) for line in self.lines), default=0), 2 * width // 3)
        for line in self.lines:
            room = width - right - 1 if line.right else width
            room = max(room - line.indent, 10)
            left = visible(line.left)
            wrapped = wrap(left, room) if line.whole else [_cut(left, room)]
            for number, part in enumerate(wrapped):
                text = Text(" " * line.indent) + part
                if number == 0 and line.right:
                    fill = width - cell_len(text.plain) - cell_len(line.right.plain)
                    text = text + Text(" " * max(fill, 1)) + line.right
                yield from _printed([text])

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(40, options.max_width), options.max_width)


class SideBySide:
    """Pairs of texts in two columns of equal width. A text without a partner spans both."""

    def __init__(self, rows: Sequence[tuple[Text, Text | None]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max((options.max_width - 3) // 2, 10)
        for left, right in self.rows:
            if right is None:
                yield from _printed(wrap(visible(left), options.max_width))
                continue
            pairs = zip_longest(wrap(visible(left), width), wrap(visible(right), width), fillvalue=Text())
            yield from _printed(
                Text.assemble(before, " " * (width - cell_len(before.plain)), (" │ ", "dim"), after)
                for before, after in pairs
            )


def _printed(lines: Iterable[Text]) -> Iterator[Text]:
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
        yield line


def visible(text: Text) -> Text:
    """Replaces control characters with visible symbols, so that no name can move the cursor."""
    if text.plain.isprintable():
        return text
    text = text.copy()
    text.plain = "".join(_picture(character) for character in text.plain)
    return text


def _picture(character: str) -> str:
    code = ord(character)
    if character.isprintable():
        return character
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def wrap(text: Text, width: int) -> list[Text]:
    """Breaks a text into lines of at most ``width`` columns, after spaces or punctuation where possible."""
    if cell_len(text.plain) <= width:
        return [text]
    parts: list[Text] = []
    start = 0
    while start < len(text.plain):
        room = width if not parts else width - HANGING
        stop = _fitting(text.plain, start, room)
        if stop < len(text.plain):
            stop = _breakpoint(text.plain, start, stop)
        part = text[start:stop]
        part.rstrip()
        parts.append(part if not parts else Text(" " * HANGING) + part)
        start = stop
    return parts


def _cut(text: Text, width: int) -> Text:
    if cell_len(text.plain) > width:
        text = text.copy()
        text.truncate(max(width, 1), overflow="ellipsis")
    return text


def _fitting(plain: str, start: int, room: int) -> int:
    """The end of the longest piece from ``start`` that fits ``room`` columns; at least one character."""
    used = stop = 0
    for stop in range(start, len(plain)):
        used += cell_len(plain[stop])
        if used > room:
            return max(stop, start + 1)
    return stop + 1


def _breakpoint(plain: str, start: int, stop: int) -> int:
    for marks in (" ", ".,/_"):
        position = max(plain.rfind(mark, start + 1, stop) for mark in marks)
        if position > start + (stop - start) // 3:
            return position + 1
    return stop
