"""The result of a check as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Verdict = Literal["exact", "not exact", "refused", "unverified", "failed"]

EXIT_CODES: Mapping[Verdict, int] = {"exact": 0, "not exact": 1, "failed": 1, "refused": 2, "unverified": 2}
"""Exit codes of ``sdp-compile check``."""


@dataclass(frozen=True)
class CutFamily:
    """A family that the plan cuts; ``share`` is its share of the model's parameter bytes."""

    name: str
    kind: str
    module_path: str
    units: int
    owners: int
    share: float


@dataclass(frozen=True)
class FrozenReason:
    """Why an operator keeps some dimensions (``times`` of them) from being cut, with the first one as an example."""

    reason: str
    operator: str
    source: str
    module_path: str
    times: int
    parameter: str
    dim: int


@dataclass(frozen=True)
class Comparison:
    """One rank in one mode, compared with the original model.

    Attributes:
        trial: What was called: "example inputs", a "second call" with the state that the first one left, or other
            sizes.
        status: "exact"; "rounding" if the error is above 1e-9, but the original's results change as much when the last
            bits of its weights do; "random" if the model draws random numbers in this mode; "not finite" if the
            original's own results are not; otherwise "not exact".
        outputs, gradients, statistics: Largest relative errors.
        worst: The tensor with the largest error.
    """

    rank: int
    mode: str
    status: str
    outputs: float
    gradients: float
    statistics: float
    worst: str
    trial: str = "example inputs"


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`.

    Attributes:
        verdict: "exact" if all compared values equal the original model's; "not exact"; "refused" for an error whose
            reason says what to do; "unverified" if the model was planned but cannot be compared; "failed" for an
            unexpected error.
        stage: The stage in which the check ended.
        share_cut: Share of the parameters that not all workers own.
        coverage: Mean number of owners per cut element, divided by the number of workers.
        kept: Share of the parameter bytes that each of ``ranks`` keeps.
        compared: What was compared: modes, calls, sizes of the inputs, dtype and seed.
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
    compared: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] | None = None
    details: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the verdict is "exact"."""
        return self.verdict == "exact"

    @property
    def exit_code(self) -> int:
        """The exit code of ``sdp-compile check``."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, ready for JSON; infinite and NaN errors become text."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=str)
        return result

    def to_json(self) -> str:
        """Returns the result as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CheckResult:
        """Returns the result that ``to_dict`` wrote."""
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
