"""What to do when a policy finds nothing to cut: changes of it that were tried and give a partition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any

from sdp_compile.errors import PolicyError
from sdp_compile.policies.base import Policy
from sdp_compile.policies.placement import replicas_for
from sdp_compile.policies.registry import POLICIES
from sdp_compile.structure.families import Structure

MOST = 2
"""So many ways to cut something are named, besides data parallelism."""

_CLASSES = {"neuron": "NeuronPolicy", "block": "BlockPolicy"}

_trying: ContextVar[bool] = ContextVar("_trying", default=False)


@contextmanager
def without_advice() -> Iterator[None]:
    """Within it, `advice` is empty: a policy is only tried."""
    token = _trying.set(True)
    try:
        yield
    finally:
        _trying.reset(token)


def advice(policy: Policy, structure: Structure, workers: int) -> str:
    """Returns a sentence that names changes of the policy with which something is cut, and data parallelism."""
    if _trying.get():
        return ""
    with without_advice():
        found = [text for text, other in _alternatives(policy, workers) if _cuts(other, structure, workers)]
        found = [*islice(found, MOST), _data_parallelism(policy)]
    return f" Use {', '.join(found[:-1])}{', or ' if len(found) > 1 else ''}{found[-1]}."


def _cuts(policy: Policy, structure: Structure, workers: int) -> bool:
    try:
        return bool(policy.partition(structure, workers))
    except PolicyError:
        return False


def _data_parallelism(policy: Policy) -> str:
    return f"coverage=1.0{' without rules' if policy.rules else ''} for data parallelism"


def _alternatives(policy: Policy, workers: int) -> Iterator[tuple[str, Policy]]:
    """Yields changed policies from the smallest change on, each with what the user writes for it."""
    if policy.rules:
        yield "no rules", policy.replace(rules={})
    for changes in _changes(policy, workers):
        yield " with ".join(f"{name}={value!r}" for name, value in changes.items()), policy.replace(**changes)
    for level, name in _CLASSES.items():
        if policy.level not in (level, "auto"):
            fields: dict[str, Any] = {
                field: getattr(policy, field) for field in policy.model_fields_set & set(Policy.model_fields)
            }
            fields = {field: value for field, value in fields.items() if field not in ("level", "design", "rules")}
            yield name, POLICIES[level](**fields)


def _changes(policy: Policy, workers: int) -> Iterator[dict[str, Any]]:
    asked = replicas_for(workers, policy.coverage, policy.replicas)
    for more in ({}, *({"replicas": number} for number in _between(asked, workers))):
        for wider in ({}, {"scope": "all"}, {"axes": "all"}, {"scope": "all", "axes": "all"}):
            changes = {name: value for name, value in wider.items() if getattr(policy, name) != value}
            if len(changes) == len(wider) and (changes or more):
                yield {**changes, **more}


def _between(asked: int, workers: int) -> list[int]:
    """Some numbers of replicas between what was asked for and all workers, the largest among them."""
    step = max(1, (workers - asked) // 4)
    return sorted({*range(asked + 1, workers, step), workers - 1} - set(range(asked + 1)) - {0})
