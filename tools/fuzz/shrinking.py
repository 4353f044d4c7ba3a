"""Looks for a smaller module that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tools.fuzz.comparison import Verdict
from tools.fuzz.grammar import Design

_TRIES = 25


def shrink(design: Design, verdict: Verdict, judge: Callable[[Design], Verdict]) -> tuple[Design, Verdict]:
    """Removes fragments, then simplifies the settings, as long as the module fails in the same way.

    Args:
        design: The design that fails.
        verdict: Its verdict.
        judge: Compares a design with its original.

    Returns:
        The smallest design that was found, and its verdict.
    """
    tries = _TRIES
    progress = True
    while progress and tries:
        progress = False
        for smaller in _smaller(design):
            if not tries:
                break
            tries -= 1
            found = judge(smaller)
            if is_alike(found, verdict):
                design, verdict, progress = smaller, found, True
                break
    return design, verdict


def is_alike(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts tell of the same defect, as far as their texts say."""
    if one.outcome != other.outcome:
        return False
    return one.outcome != "wrong" or one.detail.partition(":")[0] == other.detail.partition(":")[0]


def _smaller(design: Design) -> Iterator[Design]:
    for gene in design.all_genes:
        yield design.without(gene.number)
    plain = {"DTYPE": "float64", "LOWERING": "sliced"}
    settings = dict(design.settings)
    for name, value in plain.items():
        if settings[name] != value:
            yield replace(design, settings=tuple({**settings, name: value}.items()))
    policy = {"policy": "neuron", "coverage": 0.5, "masking": settings["POLICY"]["masking"]}
    if settings["POLICY"] != policy:
        yield replace(design, settings=tuple({**settings, "POLICY": policy}.items()))
