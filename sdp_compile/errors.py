"""Every error that this package raises on purpose.

Each message says which part of the user's model, policy or run is meant, what is wrong with it and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SDPError(Exception):
    """Base of all errors of this package."""


class CaptureError(SDPError):
    """The model could not be captured as a graph."""


class StructureError(SDPError):
    """The captured graph contradicts itself; a defect of an operator rule rather than of the user's model."""


class PolicyError(SDPError, ValueError):
    """A policy, one of its fields, or the partition that it returned is not valid."""


class NothingToPartition(PolicyError):
    """The model has nothing to cut at the level that the policy asks for."""


class PlanError(SDPError):
    """A plan is inconsistent, or does not fit the model or the process group that it is used with."""


class PassError(SDPError, ValueError):
    """A pass or a pipeline of passes does not exist, or cannot be put together."""


class LoweringError(SDPError):
    """A pass promised something that the rewritten graph does not hold."""


class DistributedError(SDPError):
    """The workers disagree, one of them failed, or a collective was used in the wrong state."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names closest to ``word``, or nothing."""
    close = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
