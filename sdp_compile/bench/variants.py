"""What ``sdp-compile bench`` compares: ways to train one model, each in eager mode and compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from sdp_compile.errors import SDPError, did_you_mean

Kind = Literal["ddp", "ddp-checkpoint", "fsdp2", "sdp", "local", "schedule"]

COMPILED = "+compile"


@dataclass(frozen=True)
class Variant:
    """One way to train the model.

    Attributes:
        base: The name without the suffix for compiled variants.
        kind: How the model is wrapped.
        label: The name in tables and plots.
        level, masking: Fields of the policy, for SDP.
        sharded: Whether the optimizer state is sharded among owners, for SDP.
        compiled: Whether the model is compiled with torch.compile.
    """

    base: str
    kind: Kind
    label: str
    level: Literal["neuron", "block"] = "neuron"
    masking: Literal["forward", "backward"] = "forward"
    sharded: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """The name on the command line, such as ``sdp-neuron+compile``."""
        return self.base + COMPILED * self.compiled


BASES = (
    Variant("ddp", "ddp", "DDP"),
    Variant("fsdp2", "fsdp2", "FSDP2"),
    Variant("ddp-checkpoint", "ddp-checkpoint", "DDP, activation checkpointing"),
    Variant("sdp-neuron", "sdp", "SDP forward, neuron"),
    Variant("sdp-neuron-sharded", "sdp", "SDP forward, neuron, sharded state", sharded=True),
    Variant("sdp-block", "sdp", "SDP forward, block", level="block"),
    Variant("sdp-backward-neuron", "sdp", "SDP backward, neuron", masking="backward"),
    Variant("sdp-backward-block", "sdp", "SDP backward, block", level="block", masking="backward"),
)

LOCAL = Variant("local", "local", "dense, no communication")
"""Trains without communication. The simulator measures the machine with it; it does not take part in a bench."""

_SCHEDULES = (
    Variant("schedule", "schedule", "SDP, the phases of a schedule"),
    Variant("schedule-sharded", "schedule", "SDP, the phases of a schedule, sharded state", sharded=True),
)

REFERENCES = ("ddp", "fsdp2")
"""The variants to which the others are compared; they take part in every wave."""

# The eager and compiled form of a variant are neighbours, so that they run in the same wave and can be compared.
VARIANTS = {variant.name: variant for base in BASES for variant in (base, replace(base, compiled=True))}

SCHEDULES = {variant.name: variant for base in _SCHEDULES for variant in (base, replace(base, compiled=True))}
"""Train by a schedule; take part where ``--schedule`` names one."""


def choose(
    patterns: Sequence[str], compile: bool = True, variants: Mapping[str, Variant] = VARIANTS
) -> tuple[Variant, ...]:
    """Returns the variants that match any pattern, in the order of ``variants``.

    Args:
        patterns: Names such as ``sdp-neuron`` or ``ddp+compile``, with or without wildcards (``sdp-*``); empty for all.
        compile: Whether to include compiled variants.
        variants: All variants by name.

    Raises:
        SDPError: If a pattern matches no variant.
    """
    known = [name for name, variant in variants.items() if compile or not variant.compiled]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            if pattern in variants:
                raise SDPError(f"--variants {pattern} and --no-compile exclude each other. Leave one of them out.")
            raise SDPError(
                f"--variants {pattern} matches no variant.{did_you_mean(pattern, known)} "
                f"The variants are {', '.join(known)}; patterns such as 'sdp-*' work too."
            )
    return tuple(
        variants[name] for name in known if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    )
