"""What all policies share: their fields, and the one method that a new policy implements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import to_jsonable_python

from sdp_compile.policies.fields import Override
from sdp_compile.structure.families import Structure
from sdp_compile.toml import to_toml

__all__ = ["Override", "Policy"]


class Policy(Override):
    """Says which workers own which units. Frozen, and its TOML form has the same fields.

    A policy of your own is a subclass with a ``partition`` method; ``register_policy`` gives it a name. Its answer is
    validated: every unit needs an owner, every worker a unit of each family. The fields below are there for it to use.
    """

    registered_name: ClassVar[str] = ""

    level: str = "custom"
    """What is partitioned: "neuron", "block" or "auto"."""

    masking: Literal["forward", "backward"] = "forward"
    """Whether a worker computes with its subnetwork, or with the full model and keeps the gradients it owns."""

    axes: Literal["disjoint", "all"] = "disjoint"
    """Whether to cut only axes of which no two meet in one parameter, or all."""

    scope: Literal["branches", "all"] = "branches"
    """Whether axes along the residual stream take part."""

    granularity: Literal["branch", "layer"] = "branch"
    """Whether a block is one residual branch, or all branches of one module."""

    seed: Annotated[int, Field(ge=0)] = 0
    """For designs that draw at random."""

    rescale: bool = False
    """Whether training multiplies what a worker keeps by N/P, as dropout does."""

    strict: bool = False
    """Whether an axis with too few units is an error rather than cut at the nearest feasible coverage."""

    rules: Mapping[str, Override | Literal["shared"]] = {}
    """Exceptions: patterns of parameter or module names, each with an override or "shared" (never cut)."""

    @abstractmethod
    def partition(self, structure: Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        """For each family that is cut, by name, the owners of each of its units.

        Raises NothingToPartition where the structure has nothing that this policy could cut.
        """

    def placing(self, override: Override | None) -> Override:
        """How a family is placed: the policy's values, with those of the rule that names it."""
        changes = {name: getattr(override, name) for name in Override.model_fields} if override is not None else {}
        changes = {name: value for name, value in changes.items() if value is not None}
        return Override(**{name: getattr(self, name) for name in Override.model_fields}).replace(**changes)

    def describe(self) -> dict[str, Any]:
        """The policy as plain data, as its TOML form has it."""
        name = type(self).__dict__.get("registered_name") or type(self).__qualname__
        return {"policy": name, **to_jsonable_python(self.model_dump(exclude_none=True), fallback=repr)}

    def to_toml(self) -> str:
        """The policy as a TOML document that ``resolve_policy`` reads."""
        return to_toml(self.describe())

    @model_validator(mode="before")
    @classmethod
    def _half_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("coverage") is None and values.get("replicas") is None:
            return {**values, "coverage": 0.5}
        return values

    @model_validator(mode="after")
    def _rescale_is_for_subnetworks(self) -> Policy:
        if self.rescale and self.masking == "backward":
            raise ValueError(
                "rescale=True makes up for units that a worker does not compute with; with masking='backward' it "
                "computes with all of them. Leave rescale out."
            )
        return self

    @field_validator("rules", mode="before")
    @classmethod
    def _rules_explain_their_errors(cls, rules: Any) -> Any:
        if not isinstance(rules, Mapping):
            return rules
        return {pattern: _override(pattern, value) for pattern, value in rules.items()}


def _override(pattern: object, value: object) -> object:
    if isinstance(value, Override) or value == "shared":
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"the rule {pattern!r} is {value!r}; it must be an override such as {{'coverage': 0.25}}, or 'shared'."
        )
    try:
        return Override(**value)
    except ValueError as error:
        raise ValueError(f"the rule {pattern!r} is not valid. {error}") from None
