"""Puts the communication that the simulator predicts beside what was measured, for several links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sdp_compile.bench.contestant import policy_of
from sdp_compile.bench.one_of.models import make_one_of_work
from sdp_compile.bench.one_of.settings import OneOfSettings
from sdp_compile.bench.one_of.variants import VARIANTS
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.simulated import strategy_of
from sdp_compile.bench.variants import Variant
from sdp_compile.capture import capture
from sdp_compile.errors import SDPError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import NeuronPolicy
from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.simulate import simulate
from sdp_compile.structure.analysis import Analysis, analyse

LINKS: Mapping[str, Link] = {
    "nvlink": Link.of(10e-6, 300e9),
    "infiniband": Link.of(20e-6, 50e9),
    "10gbe": Link.of(50e-6, 1.25e9),
}
"""Between any two workers: latency in seconds, and bytes per second in each direction as collectives achieve them.

An NVLink node of H100, InfiniBand NDR with one 400 Gb/s port per worker, and Ethernet of 10 Gb/s.
"""

_FAST = 1e30


def add_predictions(result: Mapping[str, Any], settings: OneOfSettings) -> None:
    """Adds ``predicted`` by link to each measured row.

    The cluster is as fast as what was measured, so that ``exposed`` is what a step of this worker would take longer.
    """
    work = make_one_of_work(settings, torch.device("meta"))
    analysis = analyse(capture(work.model, work.example_inputs))
    plans: dict[tuple[str, str, float], Plan] = {}
    for row in result["variants"]:
        if row["status"] != "ok" or row["name"].startswith("local"):
            continue
        variant, coverage = VARIANTS[row["name"]], row["coverage"]
        key = (variant.level, variant.masking, coverage) if variant.kind == "sdp" else ("", "", 1.0)
        try:
            if key not in plans:
                plans[key] = _plan(analysis, variant, coverage, settings.one_of)
            row["predicted"] = {link: _predict(plans[key], variant, LINKS[link], row) for link in settings.links}
        except SDPError as error:
            row["predicted"] = {"reason": str(error)}


def _plan(analysis: Analysis, variant: Variant, coverage: float | None, workers: int) -> Plan:
    if variant.kind != "sdp":
        return make_plan(analysis, NeuronPolicy(coverage=1.0), workers)
    return make_plan(analysis, policy_of(variant, BenchSettings(workers=workers, coverage=coverage)), workers)


def _predict(plan: Plan, variant: Variant, link: Link, row: Mapping[str, Any]) -> dict[str, float]:
    """Simulates twice: the time of a step is in proportion to the FLOPs per second that the cluster has."""
    strategy, phases = strategy_of(variant), row["phase_seconds"]
    cluster = Cluster(plan.workers, 1, link, link, _FAST)
    unscaled = simulate(plan, cluster, strategy)
    computing = phases["forward"] + phases["backward"]
    flops = _FAST * (unscaled.forward + unscaled.backward) / computing if computing else _FAST
    step = simulate(plan, replace(cluster, flops=flops), strategy)
    return {
        "communication": step.communication,
        "exposed": step.exposed,
        "sent": step.sent,
        "step": row["step_seconds"]["median"] + step.exposed,
    }
