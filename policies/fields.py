"""Pydantic models whose errors are all `PolicyError` in the user's terms, and the fields that rules can override."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from sdp_compile.errors import PolicyError, did_you_mean
from sdp_compile.policies.designs import designs

Model = TypeVar("Model", bound="PolicyModel")

EXPLANATIONS = {
    "coverage": "coverage is the share of the workers that own each unit, a number in (0, 1]",
    "replicas": "replicas is the number of workers that own each unit, an integer from 1 to the number of workers",
    "align": "align is a number of units, an integer of at least 1; slots start at multiples of it",
    "slots": "slots is the number of parts that a family is split into, an integer of at least 1",
    "node_size": "node_size is the number of workers of each node, an integer of at least 1 that divides the workers",
    "rules": "rules maps patterns of parameter or module names to overrides such as {'coverage': 0.25}, or to 'shared'",
}


class PolicyModel(BaseModel):
    """A frozen model with strict types and no unknown fields. ``coverage=True`` and ``coverage="0.5"`` are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise PolicyError(explain(type(self), error)) from None

    @classmethod
    def model_validate(cls: type[Model], obj: Any, **options: Any) -> Model:
        """Does what pydantic's method does, but raises the errors of the constructor."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise PolicyError(explain(cls, error)) from None

    def replace(self: Model, **changes: Any) -> Model:
        """Returns a validated copy with some fields changed. Setting ``coverage`` unsets ``replicas``, and vice versa.

        Raises:
            PolicyError: A field does not exist or its value is not valid.
        """
        values = {name: getattr(self, name) for name in self.model_fields_set}
        for given, other in (("coverage", "replicas"), ("replicas", "coverage")):
            if changes.get(given) is not None and other not in changes:
                values.pop(other, None)
        return type(self)(**{**values, **changes})


class Override(PolicyModel):
    """How families are placed on workers. In a rule, it says what changes for the parts that the rule names.

    Fields that are None keep the policy's value.
    """

    coverage: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """The share C of the workers that own each unit."""

    replicas: Annotated[int, Field(ge=1)] | None = None
    """The number P of workers that own each unit, instead of ``coverage``."""

    align: Annotated[int, Field(ge=1)] | None = None
    """The slots of an axis start at multiples of this many units, if the axis has enough units."""

    slots: Annotated[int, Field(ge=1)] | None = None
    """The number K of parts that a family is split into. By default it follows from workers and coverage."""

    design: str | None = None
    """The name of the design that places units on workers."""

    @field_validator("design")
    @classmethod
    def _design_is_known(cls, design: str | None) -> str | None:
        if design is not None and design not in designs():
            raise ValueError(
                f"unknown design {design!r}.{did_you_mean(design, designs())} "
                f"The designs are {', '.join(sorted(designs()))}."
            )
        return design

    @model_validator(mode="after")
    def _one_of_coverage_and_replicas(self) -> Self:
        if self.coverage is not None and self.replicas is not None:
            raise ValueError("give coverage or replicas, not both; coverage is replicas / workers.")
        return self


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """Returns one sentence per mistake, with the field, its value and what is allowed."""
    return " ".join(dict.fromkeys(_sentence(model, dict(item)) for item in error.errors(include_url=False)))


def _sentence(model: type[BaseModel], item: dict[str, Any]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        allowed = list(model.model_fields)
        return (
            f"{model.__name__} has no field {name!r}.{did_you_mean(name, allowed)} Its fields are {', '.join(allowed)}."
        )
    if item["type"] in ("value_error", "assertion_error"):
        return f"{model.__name__}: {str(item['msg']).removeprefix('Value error, ')}"
    allowed_values = str(item["msg"])[0].lower() + str(item["msg"])[1:]
    return f"{model.__name__}: {name}={item['input']!r} is not valid; {EXPLANATIONS.get(name, allowed_values)}."
