"""``sdp-compile inspect``: one of the inspector's views, on the terminal and in files."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sdp_compile.cli.subject import SubjectWords, subject_of
from sdp_compile.errors import SDPError

if TYPE_CHECKING:
    from sdp_compile.inspector import Shown, Subject


class ViewName(str, Enum):
    """What to look at."""

    structure = "structure"
    owners = "owners"
    graph = "graph"
    diff = "diff"
    cost = "cost"


class Mode(str, Enum):
    """Which of a model's two graphs."""

    train = "train"
    eval = "eval"


class LoweringName(str, Enum):
    """How a worker's program holds its parameters."""

    sliced = "sliced"
    masked = "masked"


@dataclass(frozen=True)
class Exports:
    """Files to write beside what the terminal shows; ``json`` alone may be - for standard output."""

    json: str | None = None
    svg: str | None = None
    html: str | None = None
    dot: str | None = None
    graph_json: str | None = None

    def __post_init__(self) -> None:
        for option, path in self.files():
            if Path(path).is_dir() or not Path(path).resolve().parent.is_dir():
                raise SDPError(f"--{option} {path}: name a file in a folder that exists.")

    def files(self) -> list[tuple[str, str]]:
        """(option, path) of each file that is asked for."""
        named = ((one.name.replace("_", "-"), getattr(self, one.name)) for one in fields(self))
        return [(option, path) for option, path in named if path is not None and path != "-"]


@dataclass(frozen=True)
class InspectSettings:
    """What one run of ``sdp-compile inspect`` was asked to do; ``None`` stands for what was not asked."""

    view: str
    words: SubjectWords
    rank: int = 0
    mode: str | None = None
    lowering: str | None = None
    module: str | None = None
    pass_name: str | None = None
    side_by_side: bool = False
    unfold: bool = False
    exports: Exports = Exports()

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.words.workers:
            raise SDPError(f"--rank {self.rank}: there are workers 0 to {self.words.workers - 1}; see --workers.")
        of_a_rank, graphs = ("graph", "diff"), ("graph", "structure")
        for option, given, views in (
            ("rank", self.rank, of_a_rank),
            ("mode", self.mode, of_a_rank),
            ("lowering", self.lowering, of_a_rank),
            ("module", self.module, of_a_rank),
            ("pass", self.pass_name, ("diff",)),
            ("side-by-side", self.side_by_side, ("diff",)),
            ("all", self.unfold, ("structure", *of_a_rank)),
            ("dot", self.exports.dot, graphs),
            ("graph-json", self.exports.graph_json, graphs),
        ):
            if given and self.view not in views:
                raise SDPError(f"--{option} belongs to the view {' and '.join(views)}, not to {self.view}.")

    def options(self) -> dict[str, Any]:
        """The view's own options, as `sdp_compile.inspector.show` takes them."""
        given = {
            "rank": self.rank,
            "mode": self.mode,
            "lowering": self.lowering,
            "module": self.module,
            "pass_name": self.pass_name,
            "side_by_side": self.side_by_side,
            "unfold": self.unfold,
        }
        return {name: value for name, value in given.items() if value}


def run(settings: InspectSettings) -> None:
    """Show the view and write the files."""
    show_and_export(subject_of(settings.words), settings)


def show_and_export(subject: Subject, settings: InspectSettings) -> None:
    """The view of a subject on standard output; with ``--json -`` the JSON stands there alone."""
    from sdp_compile.inspector import show

    shown = show(subject, settings.view, **settings.options())
    exports = settings.exports
    if exports.json == "-":
        sys.stdout.write(shown.to_json())
    else:
        Console().print(shown)
    told = Console(stderr=True)
    for option, path in exports.files():
        _write(option, path, _content(shown, option, _title(settings)))
        told.print(f"{path}: written", markup=False, highlight=False, soft_wrap=True)


def _title(settings: InspectSettings) -> str:
    return f"sdp-compile inspect {settings.view} {settings.words.model}"


def _content(shown: Shown, option: str, title: str) -> str:
    from sdp_compile.inspector import export

    if option == "json":
        return shown.to_json()
    if option in ("svg", "html"):
        width = Console().width
        return shown.svg(title, width) if option == "svg" else shown.page(width)
    return export.dot(shown.view) if option == "dot" else export.to_json(export.networkx_graph(shown.view))


def _write(option: str, path: str, content: str) -> None:
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise SDPError(f"--{option} {path}: cannot write there ({error.strerror}).") from None
