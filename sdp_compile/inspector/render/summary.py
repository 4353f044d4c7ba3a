"""A plan in a few lines: what ``print(model.plan)`` shows."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.findings import dense_bytes, parameter_bytes
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, counted, heading
from sdp_compile.inspector.terminal import html, text
from sdp_compile.planning.plan import Plan

_TELLING = ("coverage", "replicas", "masking", "design", "rescale")


def render_summary(plan: Plan) -> RenderableType:
    """Workers, what is cut, what a worker keeps, and where to read on."""
    dense, held = dense_bytes(plan), parameter_bytes(plan)
    kinds = [
        (kind, plural, [family for family in plan.families if family.kind == kind])
        for kind, plural in (("axis", "axes"), ("block", "block families"))
    ]
    cut = " and ".join(
        f"{counted(len(found), kind if kind == 'axis' else 'block family', plural)} of "
        f"{sum(family.units for family in found):,} units"
        for kind, plural, found in kinds
        if found
    )
    coverage, held_word = plan.coverage().cut, "holds" if plan.masking == "forward" else "trains"
    rows = [
        ("policy", _policy(plan)),
        ("cut", cut or "nothing: every worker trains the whole model"),
        (
            "owners",
            "" if coverage is None else f"{coverage.mean:.2f} per cut element, {coverage.min} to {coverage.max}",
        ),
        ("a worker", f"{held_word} {_range(held.min(), held.max(), dense)} of {size(dense)} of parameters"),
        ("groups", f"{counted(len(plan.groups), 'owner group')} that reduce gradients"),
        ("digest", plan.digest[:12]),
    ]
    lines = [Line(Text.assemble((f"{name:<9}", DIM), words)) for name, words in rows if words]
    hint = Text("model.inspect('owners') shows who owns what, plan.report() what is not cut and why.", style=DIM)
    return Group(heading("Plan", counted(plan.workers, "worker")), Lines(lines), hint)


class Summary:
    """A plan in a few lines: rich prints it in colour, ``str()`` gives plain text, a notebook shows HTML."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __rich__(self) -> RenderableType:
        return render_summary(self.plan)

    def __str__(self) -> str:
        return text(self).rstrip("\n")

    def _repr_html_(self) -> str:
        return html(self)


def _policy(plan: Plan) -> str:
    """The policy's name and the fields that decide most."""
    fields = {key: plan.policy[key] for key in _TELLING if plan.policy.get(key) not in (None, False)}
    return f"{plan.policy.get('policy', '')}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def _range(least: float, most: float, dense: int) -> str:
    low, high = least / max(dense, 1), most / max(dense, 1)
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"
