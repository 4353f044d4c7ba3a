"""Predicts the variants of `sdp-compile bench`, each with the plan of its own policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdp_compile.bench.contestant import policy_of
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.bench.work import Work
from sdp_compile.capture import capture
from sdp_compile.errors import SDPError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.nodes import Launch
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import NeuronPolicy
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.collectives import Algorithm
from sdp_compile.simulator.simulate import Strategy, simulate
from sdp_compile.simulator.step import Prediction
from sdp_compile.structure.analysis import analyse


@dataclass(frozen=True)
class Outcome:
    """A variant's prediction, or the ``reason`` why it cannot be predicted."""

    variant: Variant
    prediction: Prediction | None
    reason: str = ""


class Subject:
    """A model that is captured and analysed once, and its plans."""

    def __init__(self, work: Work, settings: BenchSettings) -> None:
        self.analysis = analyse(capture(work.model, work.example_inputs))
        self._settings = settings
        self._plans: dict[tuple[Variant, int], Plan] = {}
        self.dense = make_plan(self.analysis, NeuronPolicy(coverage=1.0), settings.workers)

    def plan(self, variant: Variant, node_size: int) -> Plan:
        """Returns the plan of an SDP variant on nodes of this many workers; for others, the data-parallel plan."""
        if variant.kind != "sdp":
            return self.dense
        if (variant, node_size) not in self._plans:
            policy, launch = policy_of(variant, self._settings), Launch(node_size)  # as torchrun would say
            self._plans[variant, node_size] = make_plan(self.analysis, policy, self._settings.workers, launch)
        return self._plans[variant, node_size]

    def predict(
        self,
        variants: Sequence[Variant],
        cluster: Cluster,
        algorithm: Algorithm = "best",
        bucket_bytes: int | None = None,
    ) -> list[Outcome]:
        """Predicts the step of each variant on a cluster; see `simulate`.

        Args:
            variants: What is predicted.
            cluster: The cluster.
            algorithm: The algorithm of collectives.
            bucket_bytes: Size of SDP's buckets where the settings give none; None for the best one.
        """
        outcomes, given = [], self._settings.bucket_bytes
        for variant in variants:
            try:
                prediction = simulate(
                    self.plan(variant, cluster.workers_per_node),
                    cluster,
                    strategy_of(variant),
                    bucket_bytes=given or bucket_bytes if variant.kind == "sdp" else given,
                    algorithm=algorithm,
                )
                outcomes.append(Outcome(variant, prediction))
            except SDPError as error:
                outcomes.append(Outcome(variant, None, str(error)))
        return outcomes


def strategy_of(variant: Variant) -> Strategy:
    """Returns what the simulator calls a variant. Raises `SDPError` where it has no prediction."""
    if variant.kind == "sdp":
        return "sdp-sharded" if variant.sharded else "sdp"
    if variant.kind == "local":
        raise SDPError("The variant local trains without communication, so it has no prediction.")
    if variant.kind == "schedule":
        raise SDPError("A schedule has no single step. Predict its phases with `sdp-compile simulate --schedule`.")
    return variant.kind
