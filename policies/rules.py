"""Rules: a policy's exceptions for parts of the model, named by glob patterns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from sdp_compile.errors import PolicyError, did_you_mean
from sdp_compile.policies.fields import Override

Rules = Mapping[str, Override | Literal["shared"]]


@dataclass(frozen=True)
class Decision:
    """What the rules say of a family or block: the deciding pattern, and its override or None for "shared"."""

    pattern: str
    override: Override | None


def name_and_modules(parameter: str) -> list[str]:
    """A parameter's name and those of all modules that it lies in."""
    parts = parameter.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def decide(rules: Rules, parameters: Iterable[str]) -> Decision | None:
    """The last rule that names one of the parameters or a module around one; "shared" wins over overrides."""
    if not rules:
        return None
    names = {name for parameter in parameters for name in name_and_modules(parameter)}
    decision = None
    for pattern, value in rules.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            continue
        if not isinstance(value, Override):
            return Decision(pattern, None)
        decision = Decision(pattern, value)
    return decision


def check_rules(rules: Rules, tensors: Collection[str]) -> None:
    """PolicyError for a rule that names nothing in the model: it is misspelt."""
    known = dict.fromkeys(name for tensor in tensors for name in name_and_modules(tensor)) if rules else {}
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise PolicyError(
                f"The rule {pattern!r} names no parameter and no module of the model.{did_you_mean(pattern, known)}"
            )
