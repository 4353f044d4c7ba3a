"""Rules are a policy's exceptions for parts of the model, which glob patterns name."""

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
    """What the rules say about a family or block: the deciding pattern, and its override, or None for "shared"."""

    pattern: str
    override: Override | None


def name_and_modules(parameter: str) -> list[str]:
    """Returns the name of a parameter and the names of all modules that contain it."""
    parts = parameter.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def decide(rules: Rules, parameters: Iterable[str]) -> Decision | None:
    """Returns the last rule that names one of the parameters or a module around it. "shared" wins over overrides."""
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
    """Raises `PolicyError` if a rule names nothing in the model, since it is then misspelt."""
    known = dict.fromkeys(name for tensor in tensors for name in name_and_modules(tensor)) if rules else {}
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise PolicyError(
                f"The rule {pattern!r} matches no parameter or module of the model.{did_you_mean(pattern, known)}"
            )
