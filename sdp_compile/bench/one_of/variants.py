"""What one worker of N can train as: the variants of the race, the rest of SDP's, and the dense model alone."""

from __future__ import annotations

from dataclasses import replace

from sdp_compile.bench.variants import BASES, COMPILED, LOCAL, Variant

_BY_NAME = {variant.base: variant for variant in BASES}


def _sharded(name: str) -> Variant:
    base = _BY_NAME[name]
    return replace(base, base=f"{base.base}-sharded", label=f"{base.label}, sharded state", sharded=True)


# In this order: should time run out, what matters most has been measured.
_ORDER = (
    _BY_NAME["ddp"],
    _BY_NAME["sdp-neuron"],
    _BY_NAME["sdp-neuron-sharded"],
    _BY_NAME["sdp-backward-neuron"],
    _sharded("sdp-backward-neuron"),
    _BY_NAME["fsdp2"],
    _BY_NAME["sdp-block"],
    _sharded("sdp-block"),
    _BY_NAME["sdp-backward-block"],
    _sharded("sdp-backward-block"),
    LOCAL,
    _BY_NAME["ddp-checkpoint"],
)

VARIANTS = {
    variant.name: variant
    for compiled in (False, True)
    for variant in (replace(base, compiled=compiled) for base in _ORDER)
}
"""All variants by name, eager ones first."""

REFERENCE = "ddp"
"""The variant whose memory and step time are 1."""


def reference_of(variant: Variant) -> str:
    """Returns the name of the variant that one is compared with: DDP, compiled if it is compiled."""
    return REFERENCE + COMPILED * variant.compiled
