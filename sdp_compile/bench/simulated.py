"""The variants of `sdp-compile bench`, predicted: each with the plan of its own policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdp_compile.bench.contestant import policy_of
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.bench.work import Work
from sdp_compile.capture import capture
from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import NeuronPolicy
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.collectives import Algorithm
from sdp_compile.simulator.simulate import Strategy, simulate
from sdp_compile.simulator.step import Prediction
from sdp_compile.structure.analysis import analyse


@dataclass(frozen=True)
class Outcome:
    """A variant's prediction, or the ``reason`` why it has none."""

    variant: Variant
    prediction: Prediction | None
    reason: str = ""


class Subject:
    """A model, captured and analysed once, and its plans."""

    def __init__(self, work: Work, settings: BenchSettings) -> None:
        self._analysis = analyse(capture(work.model, work.example_inputs))
        self._settings = settings
        self.dense = make_plan(self._analysis, NeuronPolicy(coverage=1.0), settings.workers)

    def plan(self, variant: Variant) -> Plan:
        """The plan of an SDP variant; that of data parallelism for the others."""
        if variant.kind != "sdp":
            return self.dense
        return make_plan(self._analysis, policy_of(variant, self._settings), self._settings.workers)

    def predict(self, variants: Sequence[Variant], cluster: Cluster, algorithm: Algorithm = "best") -> list[Outcome]:
        """Every variant's outcome; what this model or version cannot do has its reason."""
        outcomes = []
        for variant in variants:
            sizes = self._settings.bucket_bytes or DEFAULT_BUCKET_BYTES
            try:
                plan = self.plan(variant)
                found = simulate(plan, cluster, _strategy(variant), bucket_bytes=sizes, algorithm=algorithm)
                outcomes.append(Outcome(variant, found))
            except SDPError as error:
                outcomes.append(Outcome(variant, None, str(error)))
        return outcomes


def _strategy(variant: Variant) -> Strategy:
    if variant.kind == "sdp":
        return "sdp-sharded" if variant.sharded else "sdp"
    if variant.kind == "local":
        raise SDPError("Workers that do not communicate are no way to train; there is nothing to predict.")
    return variant.kind
