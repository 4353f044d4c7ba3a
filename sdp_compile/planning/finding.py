"""Findings: what a user should know about a plan before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a plan before training.

    Attributes:
        severity: Whether something should be done about it.
        text: The fact, and what to do about it.
    """

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"
