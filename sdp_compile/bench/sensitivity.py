"""How the predicted steps of variants depend on the link between nodes and on the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sdp_compile.bench.simulated import Subject
from sdp_compile.bench.variants import VARIANTS, Variant
from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.collectives import Algorithm

LINKS: Mapping[str, Link] = {
    "10 GbE": Link.of(50e-6, 1.25e9),
    "25 GbE": Link.of(40e-6, 3.1e9),
    "100 GbE": Link.of(30e-6, 12.5e9),
    "InfiniBand 400 Gb/s": Link.of(20e-6, 50e9),
    "8 x 400 Gb/s": Link.of(20e-6, 400e9),
    "NVLink": Link.of(10e-6, 2400e9),
}
"""The link of a node to others; with NVLink, as fast as eight workers are inside a node."""

SCALES = (1, 4, 16, 64)
"""Times as many samples per worker."""


@dataclass(frozen=True)
class Ratio:
    """A predicted step over DDP's, with this link between nodes and ``scale`` times as many samples."""

    name: str
    link: str
    scale: int
    of_ddp: float


def sensitivity(
    subject: Subject, variants: Sequence[Variant], cluster: Cluster, algorithm: Algorithm = "best"
) -> list[Ratio]:
    """Returns the steps of SDP over DDP's, by variant, link and batch. Variants without a prediction are left out.

    Args:
        subject: The model.
        variants: What is predicted; those that are not SDP are left out.
        cluster: The cluster, whose link between nodes is replaced.
        algorithm: The algorithm of collectives.
    """
    ours = [variant for variant in variants if variant.kind == "sdp"]
    ratios = []
    for name, link in LINKS.items():
        for scale in SCALES:
            # The FLOPs of a step are in proportion to the samples; what travels is not.
            on = replace(cluster, inter=link, flops=cluster.flops / scale)
            dense, *others = (
                outcome.prediction for outcome in subject.predict([VARIANTS["ddp"], *ours], on, algorithm)
            )
            for variant, step in zip(ours, others, strict=True):
                if dense is not None and step is not None:
                    ratios.append(Ratio(variant.name, name, scale, step.seconds / dense.seconds))
    return ratios
