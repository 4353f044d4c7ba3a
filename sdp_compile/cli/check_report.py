"""The tables of ``sdp-compile check``, from the same result that is written as JSON."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.checking.verdict import CheckResult, Verdict

MOST_ROWS = 12

_STYLES: dict[Verdict, str] = {
    "exact": "bold green",
    "not exact": "bold red",
    "refused": "bold yellow",
    "unverified": "bold yellow",
    "failed": "bold red",
}


def render(result: CheckResult, spec: str) -> RenderableType:
    """Returns what is cut, what is not, the deviations, and the verdict last."""
    parts: list[RenderableType] = [Text(_headline(result, spec), style="bold")]
    if result.families:
        parts.append(_families(result))
    if result.frozen:
        parts.append(_frozen(result))
    if result.comparisons:
        parts.append(_comparisons(result))
    parts += [Text(f"- {note}") for note in result.notes]
    if result.seconds:
        times = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items() if seconds >= 0.05)
        parts.append(Text(f"seconds: {times or 'less than 0.1'}", style="dim"))
    parts.append(verdict(result))
    return Group(*parts)


def verdict(result: CheckResult) -> Text:
    """Returns the verdict in its colour, and the reason."""
    text = Text(result.verdict, style=_STYLES[result.verdict])
    if result.verdict in ("refused", "failed"):
        text.append(f" ({result.stage})", style="default")
    if result.reason:
        text.append(f": {result.reason}", style="default not bold")
    elif result.is_exact:
        worst = max(max(one.outputs, one.gradients, one.statistics) for one in result.comparisons)
        text.append(
            f": outputs, gradients and running statistics of {len(result.ranks)} of {result.workers} workers equal the "
            f"original's to {worst:.0e}, in training and evaluation.",
            style="default not bold",
        )
        if result.compared:
            what = result.compared
            more = "; ".join(name for name in what["calls"] if name != "example inputs")
            text.append(
                f" Also compared for worker {result.ranks[0]}: {more}. All in {what['dtype']}, seed {what['seed']}.",
                style="default not bold",
            )
    return text


def _headline(result: CheckResult, spec: str) -> str:
    parts = [f"{spec} ({result.model})"]
    if result.captured:
        parts.append(f"{result.axes} axes, {result.blocks} blocks found")
    if result.families:
        cut = f"{result.axes_cut} axes" if result.axes_cut else f"{result.blocks_cut} blocks"
        parts.append(f"{cut} cut: {result.share_cut:.1%} of the parameters")
        parts.append(f"coverage {result.coverage or 1:.3f} among {result.workers} workers")
        parts.append(f"a worker keeps at most {max(result.kept, default=1):.1%}")
    return " · ".join(parts)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)


def _families(result: CheckResult) -> Table:
    table = _table("What is cut", "family", "module", "units", "owners", "share")
    for family in result.families[:MOST_ROWS]:
        table.add_row(family.name, family.module_path, str(family.units), str(family.owners), f"{family.share:.1%}")
    rest = result.families[MOST_ROWS:]
    if rest:
        units, share = sum(family.units for family in rest), sum(family.share for family in rest)
        table.add_row(f"{len(rest)} more", "", str(units), "", f"{share:.1%}")
    return table


def _frozen(result: CheckResult) -> Table:
    table = _table("What is never cut, and why", "times", "reason", "operator", "for example", "module", "line")
    for reason in result.frozen[:MOST_ROWS]:
        line = "/".join(reason.source.split("/")[-2:])
        example = f"{reason.parameter} dim {reason.dim}"
        table.add_row(str(reason.times), reason.reason, reason.operator, example, reason.module_path, line)
    if result.frozen[MOST_ROWS:]:
        table.add_row(str(sum(reason.times for reason in result.frozen[MOST_ROWS:])), "more; see --json")
    return table


def _comparisons(result: CheckResult) -> Table:
    table = _table(
        "Relative deviation from the original model", "worker", "mode", "call", "outputs", "gradients", "statistics", ""
    )
    for one in result.comparisons[: 2 * MOST_ROWS]:
        errors = (f"{error:.0e}" for error in (one.outputs, one.gradients, one.statistics))
        table.add_row(str(one.rank), one.mode, one.trial, *errors, one.status if one.status != "exact" else "")
    return table
