"""The errors that this package raises.

Each message says which part of the user's model, policy or run is wrong, what is wrong with it and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SDPError(Exception):
    """Base class of all errors of this package."""


class CaptureError(SDPError):
    """The model could not be captured as a graph."""


class StructureError(SDPError):
    """The captured graph contradicts itself. This is a defect of an operator rule, not of the user's model."""


class PolicyError(SDPError, ValueError):
    """A policy, one of its fields, or the partition it returned is not valid."""


class NothingToPartition(PolicyError):
    """The model has nothing to cut at the level that the policy asks for."""


class PlanError(SDPError):
    """A plan is inconsistent, or does not fit the model or process group it is used with."""


class PassError(SDPError, ValueError):
    """A pass or a pipeline of passes does not exist, or cannot be put together."""


class LoweringError(SDPError):
    """A rewritten graph breaks a promise of the pass that wrote it."""


class DistributedError(SDPError):
    """The workers disagree, a worker failed, or a collective was called in the wrong state."""


class DamagedState(DistributedError):
    """Owners of a unit hold different values, gradients or optimizer states, or some are infinite or NaN."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns the end of an error message that suggests the known names closest to ``word``.

    Args:
        word: The name that was not found.
        known: The names that exist.

    Returns:
        `` Did you mean 'a' or 'b'?`` with a leading space and at most three names, or ``""`` if none is close.
    """
    close = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
