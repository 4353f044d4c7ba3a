"""Schedules by name: those that come with the package, as TOML files in this folder, or from files of the user."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from sdp_compile.errors import PolicyError, did_you_mean
from sdp_compile.policies.base import Policy
from sdp_compile.policies.registry import POLICIES, resolve_policy
from sdp_compile.policies.schedule import Phase, Schedule
from sdp_compile.toml import read_toml

READY = Path(__file__).parent
"""The folder of the schedules that come with the package; a file's name is its schedule's."""


def is_schedule(value: Any) -> bool:
    """Whether a user means a schedule by what could also be a policy: a `Schedule`, its name, file or content."""
    if isinstance(value, Mapping):
        return "phase" in value or "phases" in value
    if isinstance(value, (str, PathLike)):
        text = fspath(value)
        if isinstance(value, PathLike) or text.endswith(".toml") or "/" in text:
            return "phase" in read_toml(Path(text))
        return text in ready_schedules() and text not in POLICIES.names()
    return isinstance(value, Schedule)


def resolve_schedule(
    schedule: Schedule | Policy | str | PathLike[str] | Mapping[str, Any], /, **overrides: Any
) -> Schedule:
    """Returns the schedule that a user named.

    Args:
        schedule: A schedule, the name of one that comes with the package, a TOML file, or the content of one. A policy
            in any form is a schedule of one phase.
        **overrides: Fields to replace, such as ``steps``.

    Raises:
        PolicyError: No such schedule or file exists, or a field is not valid.
    """
    found = _resolved(schedule)
    return found.replace(**overrides) if overrides else found


def _resolved(schedule: Any) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, Policy):
        return Schedule([Phase(schedule)])
    if isinstance(schedule, Mapping):
        return _from_mapping(schedule)
    if not isinstance(schedule, (str, PathLike)):
        raise PolicyError(f"A schedule must be a Schedule, a name, a TOML file or a mapping, got {schedule!r:.80}.")
    text = fspath(schedule)
    if isinstance(schedule, PathLike) or text.endswith(".toml") or "/" in text:
        path = Path(text)
    elif text in ready_schedules():
        path = READY / f"{text}.toml"
    elif text in POLICIES.names():
        return Schedule([Phase(resolve_policy(text))])
    else:
        raise PolicyError(
            f"There is no schedule {text!r}.{did_you_mean(text, ready_schedules())} The schedules are "
            f"{', '.join(ready_schedules())}; the name of a TOML file must end in .toml."
        )
    try:
        return _from_mapping(read_toml(path, "schedule"))
    except PolicyError as error:
        raise error if text in str(error) else PolicyError(f"In the schedule file {text!r}: {error}") from None


def _from_mapping(values: Mapping[str, Any]) -> Schedule:
    if "phase" not in values and "phases" not in values:
        return Schedule([Phase(resolve_policy(values))])
    fields = {str(key): value for key, value in values.items() if key != "phase"}
    return Schedule(values["phase"], **fields) if "phase" in values else Schedule(**fields)


def ready_schedules() -> list[str]:
    """Returns the names of the schedules that come with the package."""
    return sorted(path.stem for path in READY.glob("*.toml"))
