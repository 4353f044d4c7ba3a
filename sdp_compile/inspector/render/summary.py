"""A plan in a few lines: what ``print(model.plan)`` shows, and the head of ``plan.report()``."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.plan_figures import dense_bytes, parameter_bytes, shared_share
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, counted, heading, owners_text
from sdp_compile.inspector.terminal import html, text
from sdp_compile.planning.plan import Plan

_POLICY_FIELDS = ("coverage", "replicas", "masking", "design", "rescale")


def summary_head(plan: Plan) -> RenderableType:
    """Renders the workers, what is cut, what a worker keeps, and the digest."""
    coverage = plan.coverage().cut
    rows = [
        ("policy", _policy(plan)),
        ("cut", _cut(plan) or "nothing: every worker trains the whole model"),
        ("owners", "" if coverage is None else owners_text(coverage.min, coverage.mean, coverage.max)),
        ("shared", f"{shared_share(plan):.1%} of the parameter bytes, by all workers" if plan.families else ""),
        ("worker", f"{'holds' if plan.masking == 'forward' else 'trains'} {_held(plan)}"),
        ("groups", counted(len(plan.groups), "owner group") if plan.groups else ""),
        ("digest", plan.digest[:12]),
    ]
    lines = [Line(Text.assemble((f"{name:<9}", DIM), words)) for name, words in rows if words]
    return Group(heading("Plan", counted(plan.workers, "worker")), Lines(lines))


def render_summary(plan: Plan) -> RenderableType:
    """Renders the head of the report, and says where to read on."""
    hint = "model.inspect('owners') shows who owns what; plan.report() lists what is not cut and why."
    return Group(summary_head(plan), Text(hint, style=DIM))


class Summary:
    """A plan in a few lines. Rich prints it in colour, ``str()`` returns plain text, a notebook shows HTML."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __rich__(self) -> RenderableType:
        return render_summary(self.plan)

    def __str__(self) -> str:
        return text(self).rstrip("\n")

    def _repr_html_(self) -> str:
        return html(self)


def _policy(plan: Plan) -> str:
    """The policy's name and its most important fields."""
    fields = {key: plan.policy[key] for key in _POLICY_FIELDS if plan.policy.get(key) not in (None, False)}
    return f"{plan.policy.get('policy', '')}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def _cut(plan: Plan) -> str:
    """``6 axes of 108 units``."""
    parts = []
    for kind, singular, plural in (("axis", "axis", "axes"), ("block", "block family", "block families")):
        units = [family.units for family in plan.families if family.kind == kind]
        if units:
            parts.append(f"{counted(len(units), singular, plural)} of {sum(units):,} units")
    return " and ".join(parts)


def _held(plan: Plan) -> str:
    """``53.2% of 49.4 KiB of parameters``, as a range where workers differ."""
    dense, held = dense_bytes(plan), parameter_bytes(plan)
    low, high = (f"{nbytes / max(dense, 1):.1%}" for nbytes in (held.min(), held.max()))
    return f"{low if low == high else f'{low} to {high}'} of {size(dense)} of parameters"
