"""What ``sdp-compile bench`` compares: the ways to train one model, each in eager mode and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from sdp_compile.errors import SDPError, did_you_mean

Kind = Literal["ddp", "ddp-checkpoint", "fsdp2", "sdp", "local"]

COMPILED = "+compile"


@dataclass(frozen=True)
class Variant:
    """One way to train the model. ``level``, ``masking`` and ``sharded`` (the optimizer's state) are SDP's."""

    base: str
    kind: Kind
    label: str
    level: Literal["neuron", "block"] = "neuron"
    masking: Literal["forward", "backward"] = "forward"
    sharded: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
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
"""Each worker by itself: no peer, but what the simulator measures the machine with."""

REFERENCES = ("ddp", "fsdp2")
"""Those that the others are set in ratio to; they take part in every wave."""

# A variant's eager and compiled form stand side by side: they run in one wave, and their ratio is of one wave.
VARIANTS = {
    variant.name: variant for base in BASES for variant in (base, Variant(**{**base.__dict__, "compiled": True}))
}


def choose(patterns: Sequence[str], compile: bool = True) -> tuple[Variant, ...]:
    """The variants that ``patterns`` name (all for none), in the order of `VARIANTS`; without ``compile`` eager ones.

    A pattern is a name such as ``sdp-neuron`` or ``ddp+compile``, or one with wildcards (``sdp-*``). Raises `SDPError`.
    """
    known = [name for name, variant in VARIANTS.items() if compile or not variant.compiled]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            if pattern in VARIANTS:
                raise SDPError(f"--variants {pattern}: --no-compile leaves it out; drop one of the two.")
            raise SDPError(
                f"--variants {pattern}: there is no such variant.{did_you_mean(pattern, known)} "
                f"They are {', '.join(known)}, and patterns such as 'sdp-*'."
            )
    return tuple(
        VARIANTS[name] for name in known if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    )
