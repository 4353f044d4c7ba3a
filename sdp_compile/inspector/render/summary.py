"""A plan in a few lines: what ``print(model.plan)`` shows, and the head of ``plan.report()``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.plan_figures import dense_bytes, parameter_bytes, shared_share
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, counted, heading, owners_text
from sdp_compile.inspector.terminal import html, text
from sdp_compile.inspector.travel import levels_text, redundancy_text
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
    nodes = counted(plan.nodes, "node") if plan.nodes > 1 else ""
    return Group(heading("Plan", counted(plan.workers, "worker"), nodes), _lines(rows))


def travel_lines(plan: Plan) -> RenderableType:
    """Renders how gradients travel, how fast the workers' copies mix, what losses cost nothing, and the balance."""
    rows = [("levels", levels_text(plan.levels))]
    if plan.families:
        rows += [
            ("mixing", f"spectral gap {plan.spectral_gap():.3f} (1 mixes all workers' copies at once, 0 never)"),
            ("losses", redundancy_text(plan)),
            ("balance", _balance(plan)),
        ]
    return _lines(rows)


def _lines(rows: Sequence[tuple[str, str]]) -> Lines:
    return Lines([Line(Text.assemble((f"{name:<9}", DIM), words)) for name, words in rows if words])


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


def _balance(plan: Plan) -> str:
    """The load of the most loaded worker, relative to the mean."""
    held = parameter_bytes(plan)
    flops = np.array([plan.flops(members[0]) for members in plan.worker_classes()])
    sizes = np.array([len(members) for members in plan.worker_classes()])
    mean = float(flops @ sizes) / plan.workers
    parts = [("parameters", float(held.max() / held.mean()) if held.any() else 1.0)]
    parts += [("FLOPs", float(flops.max()) / mean)] if mean else []
    shown = " and ".join(f"{ratio:.2f} of the mean {what}" for what, ratio in parts)
    return f"the most loaded worker has {shown}"


def _held(plan: Plan) -> str:
    """``53.2% of 49.4 KiB of parameters``, as a range where workers differ."""
    dense, held = dense_bytes(plan), parameter_bytes(plan)
    low, high = (f"{nbytes / max(dense, 1):.1%}" for nbytes in (held.min(), held.max()))
    return f"{low if low == high else f'{low} to {high}'} of {size(dense)} of parameters"
