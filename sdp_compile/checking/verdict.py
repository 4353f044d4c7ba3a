"""What a check found, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Verdict = Literal["exact", "not exact", "refused", "unverified", "failed"]

EXIT_CODES: Mapping[Verdict, int] = {"exact": 0, "not exact": 1, "failed": 1, "refused": 2, "unverified": 2}
"""Of ``sdp-compile check``."""


@dataclass(frozen=True)
class CutFamily:
    """One family that the plan partitions; ``share`` is its share of the model's parameter bytes."""

    name: str
    kind: str
    module_path: str
    units: int
    owners: int
    share: float


@dataclass(frozen=True)
class FrozenReason:
    """Why dimensions are never cut: the operator that needs all of them, with the first parameter as an example."""

    reason: str
    operator: str
    source: str
    module_path: str
    times: int
    parameter: str
    dim: int


@dataclass(frozen=True)
class Comparison:
    """One rank in one mode against the original model: the largest relative errors, and the tensor with the largest.

    ``status``: "exact"; "rounding": above 1e-9, but the original deviates as much from itself when its weights change
    in the last bits; "random": the model draws random numbers in this mode; "not finite": the original's own results
    are not; else "not exact".
    """

    rank: int
    mode: str
    status: str
    outputs: float
    gradients: float
    statistics: float
    worst: str


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`.

    ``verdict``: "exact": every compared value equals the original model's; "not exact"; "refused": an error that says
    what to do; "unverified": planned, but not comparable; "failed": an unexpected error. ``stage`` is where it ended.
    ``kept`` holds the share of the parameter bytes that each of ``ranks`` keeps; ``share_cut`` is the share of the
    parameters that not every worker owns; ``coverage`` the mean number of workers per cut element, divided by N.
    """

    model: str
    verdict: Verdict
    reason: str
    stage: str
    workers: int
    ranks: tuple[int, ...]
    policy: Mapping[str, Any]
    captured: bool = False
    parameters: int = 0
    axes: int = 0
    axes_cut: int = 0
    blocks: int = 0
    blocks_cut: int = 0
    share_cut: float = 0.0
    coverage: float | None = None
    kept: tuple[float, ...] = ()
    families: tuple[CutFamily, ...] = ()
    frozen: tuple[FrozenReason, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] | None = None
    details: str = ""

    @property
    def is_exact(self) -> bool:
        return self.verdict == "exact"

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: an infinite or undefined error is text there."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=str)
        return result

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CheckResult:
        """The result that ``to_dict`` wrote."""
        nested: Mapping[str, Any] = {"families": CutFamily, "frozen": FrozenReason, "comparisons": Comparison}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        for key, kind in nested.items():
            values[key] = tuple(kind(**item) for item in values.get(key, ()))
        errors = ("outputs", "gradients", "statistics")  # JSON has no infinity
        values["comparisons"] = tuple(
            replace(one, **{name: float(getattr(one, name)) for name in errors}) for one in values["comparisons"]
        )
        return cls(**values)

    def __str__(self) -> str:
        return f"{self.model}: {self.verdict}" + (f" ({self.reason})" if self.reason else "")
