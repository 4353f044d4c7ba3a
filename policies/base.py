"""The base class of all policies: their fields, and the one method that a new policy implements."""

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
    """Says which workers own which units. Policies are frozen, and their TOML form has the same fields.

    To write a policy, subclass this and implement `partition`; `register_policy` gives the class a name. The partition
    is validated: every unit needs an owner, and every worker needs a unit of every family that is cut.

    Args:
        coverage: The share C of the workers that own each unit, in (0, 1]; 0.5 if neither it nor ``replicas`` is given.
            With N workers, each unit has max(1, floor(C N + 1/2)) owners. 1.0 is data parallelism.
        replicas: The number P of workers that own each unit, instead of ``coverage``.
        align: The slots of an axis start at multiples of this many units, if the axis has enough units.
        slots: The number K of parts that a family is split into; by default it follows from workers and coverage.
        design: The name of the design that places units on workers.
        level: What is partitioned: "neuron", "block", "auto", or "custom" for policies of your own.
        masking: With "forward", a worker computes with its subnetwork only. With "backward", it computes with the full
            model and keeps only the gradients of what it owns.
        axes: With "disjoint", no two of the axes that are cut meet in one parameter. With "all", axes may meet.
        scope: With "branches", axes along the residual stream stay whole. With "all", they are cut as well.
        granularity: With "branch", a block is one residual branch. With "layer", it is all branches of one module.
        seed: The random seed for designs that draw at random, and how far a rolling design has moved.
        rescale: Whether training multiplies what a worker keeps by N/P, as dropout does. For forward masking only.
        strict: Whether it is an error if a family has too few units for the coverage. By default such a family gets
            more owners per unit, and the report says so.
        node_size: The number of workers of each node, where links inside a node are faster than between nodes. Worker w
            is on node w // node_size. With at least K nodes (a multiple of K), the workers of a node own the same
            units, so that only parts of their sums travel between nodes. By default, `sdp_compile` under torchrun
            takes its number of local workers; anything else plans for one node.
        rules: Exceptions for parts of the model. Each key is a glob pattern of parameter or module names. Its value is
            an `Override`, a mapping of its fields, or "shared" for parts that are never cut.

    Raises:
        PolicyError: A field does not exist or its value is not valid.
    """

    registered_name: ClassVar[str] = ""

    level: str = "custom"
    """What is partitioned: "neuron", "block", "auto", or "custom" for policies of your own."""

    masking: Literal["forward", "backward"] = "forward"
    """Whether a worker computes with its subnetwork, or with the full model but keeps only gradients it owns."""

    axes: Literal["disjoint", "all"] = "disjoint"
    """Whether to cut only axes that do not meet in one parameter, or all axes."""

    scope: Literal["branches", "all"] = "branches"
    """Whether to leave axes along the residual stream whole, or to cut all axes."""

    granularity: Literal["branch", "layer"] = "branch"
    """Whether a block is one residual branch, or all branches of one module."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed for designs that draw at random."""

    rescale: bool = False
    """Whether training multiplies what a worker keeps by N/P, as dropout does."""

    strict: bool = False
    """Whether a family with too few units is an error. By default, its units get more owners."""

    node_size: Annotated[int, Field(ge=1)] | None = None
    """The number of workers of each node. By default that of torchrun, or one node with all workers."""

    rules: Mapping[str, Override | Literal["shared"]] = {}
    """Exceptions: patterns of parameter or module names, each with an `Override` or "shared" (never cut)."""

    @abstractmethod
    def partition(self, structure: Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        """Partitions a model among workers.

        Args:
            structure: The families of the model, with the bytes and FLOPs of their units.
            workers: The number N of workers. Their numbers are 0 to N - 1.

        Returns:
            For each family to cut, by name, the owners of each of its units. Other families stay whole on all workers.

        Raises:
            NothingToPartition: The model has nothing that this policy can cut.
        """

    def placing(self, override: Override | None) -> Override:
        """Returns how a family is placed: the policy's values, replaced by those of ``override`` that are not None."""
        changes = {name: getattr(override, name) for name in Override.model_fields} if override is not None else {}
        changes = {name: value for name, value in changes.items() if value is not None}
        return Override(**{name: getattr(self, name) for name in Override.model_fields}).replace(**changes)

    def describe(self) -> dict[str, Any]:
        """Returns the policy as plain data, with the keys of its TOML form."""
        name = type(self).__dict__.get("registered_name") or type(self).__qualname__
        return {"policy": name, **to_jsonable_python(self.model_dump(exclude_none=True), fallback=repr)}

    def to_toml(self) -> str:
        """Returns the policy as a TOML document, which `resolve_policy` reads."""
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
                "rescale=True needs masking='forward': with masking='backward', a worker computes with all units, and "
                "there is nothing to make up for."
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
            f"the rule {pattern!r} must be an override such as {{'coverage': 0.25}}, or 'shared', got {value!r}."
        )
    try:
        return Override(**value)
    except ValueError as error:
        raise ValueError(f"the rule {pattern!r} is not valid. {error}") from None
