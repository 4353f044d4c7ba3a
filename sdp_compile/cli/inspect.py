"""``sdp-compile inspect``: one of the inspector's views, on the terminal and in files."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sdp_compile.cli.json_file import write_text
from sdp_compile.cli.model_line import model_line
from sdp_compile.cli.subject import Planned, SubjectWords, subject_of
from sdp_compile.command_words import check_file, check_ranks
from sdp_compile.errors import SDPError

if TYPE_CHECKING:
    from sdp_compile.inspector import Shown


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
            check_file(f"--{option}", path)

    def files(self) -> list[tuple[str, str]]:
        """Returns (option, path) of each file to write."""
        named = ((one.name.replace("_", "-"), getattr(self, one.name)) for one in fields(self))
        return [(option, path) for option, path in named if path is not None and path != "-"]


@dataclass(frozen=True)
class InspectSettings:
    """The options of one run of ``sdp-compile inspect``; None stands for an option that was not given."""

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
        check_ranks([self.rank], self.words.workers)
        of_a_rank, graphs = ("graph", "diff"), ("graph", "structure")
        for option, given, views in (
            ("rank", self.rank, of_a_rank),
            ("mode", self.mode, of_a_rank),
            ("lowering", self.lowering, of_a_rank),
            ("passes", self.words.passes, of_a_rank),
            ("module", self.module, of_a_rank),
            ("pass", self.pass_name, ("diff",)),
            ("side-by-side", self.side_by_side, ("diff",)),
            ("all", self.unfold, ("structure", *of_a_rank)),
            ("dot", self.exports.dot, graphs),
            ("graph-json", self.exports.graph_json, graphs),
            ("schedule", self.words.schedule, ("phases",)),
        ):
            if given and self.view not in views:
                raise SDPError(f"--{option} applies to the view {' and '.join(views)}, not to {self.view}.")
        if self.view == "phases" and self.words.schedule is None:
            raise SDPError("The view phases is that of a schedule. Add --schedule NAME or --schedule FILE.toml.")

    def options(self) -> dict[str, Any]:
        """Returns the view's own options, as `sdp_compile.inspector.show` takes them."""
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
    """Shows the view and writes the files; with ``--json -`` standard output holds the JSON alone."""
    planned = subject_of(settings.words)  # a wrong policy is refused before torch is loaded
    from sdp_compile.inspector import show

    passes = planned.pipeline(settings.words, "masked" if settings.lowering == "masked" else "sliced")
    extra = {"passes": passes} if passes else {} if planned.schedule is None else {"schedule": planned.schedule}
    shown = show(planned.subject, settings.view, **settings.options(), **extra)
    exports = settings.exports
    if exports.json == "-":
        write_text("-", _json(shown, planned))
    else:
        Console().print(model_line(planned.description), shown, highlight=False)
    told = Console(stderr=True)
    for option, path in exports.files():
        content = _json(shown, planned) if option == "json" else _content(shown, option, _title(settings))
        write_text(path, content, f"--{option}")
        told.print(f"{path}: written", markup=False, highlight=False, soft_wrap=True)


def _title(settings: InspectSettings) -> str:
    return f"sdp-compile inspect {settings.view} {settings.words.model}"


def _content(shown: Shown, option: str, title: str) -> str:
    from sdp_compile.inspector import export

    if option in ("svg", "html"):
        width = Console().width
        return shown.svg(title, width) if option == "svg" else shown.page(width)
    return export.dot(shown.view) if option == "dot" else export.to_json(export.networkx_graph(shown.view))


def _json(shown: Shown, planned: Planned) -> str:
    """Returns the view's data, and which model it is of."""
    found = {**shown.to_dict(), "configuration": planned.loaded.to_dict()}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"
