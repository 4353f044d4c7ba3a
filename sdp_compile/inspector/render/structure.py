"""The view ``structure`` on a terminal: the module tree, the families, and what is never cut and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.modules import Module, TensorInfo
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, counted, grouped_by_like, heading, times_text
from sdp_compile.inspector.structure import FamilyInfo, StructureView

MOST_ROWS = 16
"""Rows of each table below the tree; the last row sums up the rest."""

_CUT, _FREE, _FROZEN = "bold green", "cyan", "dim"


def render_structure(view: StructureView, unfold: bool = False) -> RenderableType:
    """Renders the structure of a model; ``unfold`` writes out modules that repeat an earlier one."""
    blocks = len(view.blocks)
    axes = sum(family.kind == "axis" for family in view.families)
    found = f"{counted(axes, 'axis', 'axes')} and {counted(blocks, 'block')} found"
    cut = f"{view.share_cut:.1%} cut for {counted(view.workers, 'worker')}"
    title = heading(view.model, f"{view.parameters:,} parameters", size(view.nbytes), found, cut)
    reasons = {(one.reason, one.operator): number for number, one in enumerate(view.frozen, 1)}
    header = Line(Text("module", style="italic"), Text("    bytes  share    cut", style="italic"))
    cut_blocks = any(family.kind == "block" and family.owners is not None for family in view.families)
    tree = _Tree(unfold, reasons, cut_blocks)
    parts: list[RenderableType] = [title, Text(), Lines([header, *tree.lines(view.tree)]), Text(), _legend(cut_blocks)]
    if view.families:
        parts += [Text(), Lines(list(_families(view.families)))]
    if view.frozen:
        parts += [Text(), Lines(list(_frozen(view)))]
    if view.notes:
        parts += [Text(), Lines([Line(Text(f"- {note}")) for note in view.notes])]
    return Group(*parts)


def _legend(cut_blocks: bool) -> Text:
    return Text.assemble(
        ("6*", _CUT),
        " cut   ",
        ("6'", _FREE),
        " could be cut   ",
        ("6 (1)", _FROZEN),
        " never cut: see (1)   ",
        _branch(cut_blocks),
        " residual branch",
    )


def _branch(cut: bool) -> tuple[str, str]:
    return ("block*", _CUT) if cut else ("block'", _FREE)


@dataclass(frozen=True)
class _Tree:
    """The module tree as lines, with the numbers of the ``reasons`` that freeze dimensions."""

    unfold: bool
    reasons: Mapping[tuple[str, str], int]
    cut_blocks: bool

    def lines(self, module: Module, guide: str = "", below: str = "", alike: int = 1) -> Iterator[Line]:
        left = Text.assemble((guide, DIM), (module.name or module.type, "bold"))
        left.append(f"  {module.type}" if module.name else "", style=DIM)
        if module.block is not None:
            left.append("  ").append(*_branch(self.cut_blocks))
        left.append(_alike(alike), style="italic magenta")
        yield Line(left, _figures(module))
        children = list(_folded(module.children, self.unfold))
        tensors = list(_tensors(module.tensors, self.reasons))
        for number, text in enumerate(tensors):
            last = number == len(tensors) - 1 and not children
            yield Line(Text.assemble((below + ("╰ " if last else "│ "), DIM), text))
        for number, (child, count) in enumerate(children):
            last = number == len(children) - 1
            corner, line = ("╰─ ", "   ") if last else ("├─ ", "│  ")
            yield from self.lines(child, below + corner, below + line, count)


def _alike(count: int) -> str:
    return f"{times_text(count)}, alike" if count > 1 else ""


def _figures(module: Module) -> Text:
    if not module.nbytes:
        return Text(f"{'-':>9}" + " " * 14, style=DIM)
    text = Text(f"{size(module.nbytes):>9} {module.share:>6.1%} ")
    return text.append(
        f"{module.share_cut:>6.1%}" if module.share_cut else f"{'-':>6}", style=_CUT if module.share_cut else DIM
    )


def _folded(children: Sequence[Module], unfold: bool) -> Iterator[tuple[Module, int]]:
    """The children that hold parameters, each with the number of modules that it stands for."""
    shown = [child for child in children if child.nbytes or any(child.tensors)]
    for child in shown:
        if unfold or child.like is None:
            yield child, 1 if unfold else 1 + sum(other.like == child.path for other in shown)


def _tensors(tensors: Sequence[TensorInfo], reasons: Mapping[tuple[str, str], int]) -> Iterator[Text]:
    """One line for each run of tensors of the same shape and composition."""
    kinds = groupby(tensors, key=lambda one: (one.kind, one.dtype, _dims(one, reasons).plain, one.also))
    for _, group in kinds:
        alike = list(group)
        first = alike[0]
        text = Text(", ".join(one.name.rpartition(".")[2] for one in alike)).append(" ")
        text.append_text(_dims(first, reasons))
        kind = "" if first.kind == "parameter" else first.kind
        extra = [kind, "" if first.trainable or kind else "not trained", *(f"= {name}" for name in first.also)]
        yield text.append(f"  {', '.join(filter(None, extra))}" if any(extra) else "", style=DIM)


def _dims(tensor: TensorInfo, reasons: Mapping[tuple[str, str], int]) -> Text:
    text = Text("[")
    for number, dim in enumerate(tensor.dims):
        text.append(", " if number else "")
        style = _CUT if dim.cut else _FREE if dim.axes else _FROZEN
        text.append(dim.marked, style=style)
        if dim.frozen is not None:
            text.append(f" ({reasons.get((dim.frozen.reason, dim.frozen.operator), '-')})", style=_FROZEN)
    return text.append("]")


def _families(families: Iterable[FamilyInfo]) -> Iterator[Line]:
    """One row per group of alike families: those that are cut first, then by size."""
    yield Line(Text("What can be cut", style="italic"), Text("units      bytes   share  owners", style="italic"))
    groups = sorted(grouped_by_like(families), key=lambda group: group[0].owners is None)
    for group in groups[:MOST_ROWS]:
        first, nbytes = group[0], sum(one.nbytes for one in group)
        cut = first.owners is not None
        name = Text(first.name, style=_CUT if cut else _FREE)
        name.append(_alike(len(group)), style="not bold italic magenta")
        name.append("  residual stream" if first.residual else "", style="not bold dim")
        figures = f"{first.units:>7,} {size(nbytes):>10} {sum(one.share for one in group):>7.1%} "
        yield Line(name, Text(f"{figures}{first.owners if cut else '-':>7}", style="" if cut else DIM))
    rest = [one for group in groups[MOST_ROWS:] for one in group]
    if rest:
        figures = f"{sum(one.units for one in rest):>7,} {size(sum(one.nbytes for one in rest)):>10}{'':>16}"
        yield Line(Text(f"{len(rest)} more; see --json", style=DIM), Text(figures, style=DIM))


def _frozen(view: StructureView) -> Iterator[Line]:
    yield Line(Text("What is never cut, and why", style="italic"), Text("dimensions", style="italic"))
    for number, one in enumerate(view.frozen[:MOST_ROWS], 1):
        text = Text(f"({number}) {one.reason}").append(f" ({one.operator})" if one.operator else "", style=DIM)
        text.append(f", as in {one.example} dim {one.dim}")
        yield Line(text, Text(f"{one.times:,}"))
        if one.source:
            yield Line(Text(f"# {one.source}  {one.line}", style=DIM), indent=4, whole=False)
    rest = view.frozen[MOST_ROWS:]
    if rest:
        yield Line(
            Text(f"{len(rest)} more reasons; see --json", style=DIM), Text(f"{sum(one.times for one in rest):,}")
        )
