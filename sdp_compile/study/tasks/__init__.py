"""Tasks for studies: from data that every machine has, and from data sets that are present."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.study.tasks.base import Batch, Part, Shape, Task
from sdp_compile.study.tasks.digits import Digits
from sdp_compile.study.tasks.images import Cifar10, Cifar100, Images
from sdp_compile.study.tasks.teacher import Teacher
from sdp_compile.study.tasks.text import Documents, Text

__all__ = ["TASKS", "Batch", "Part", "Shape", "Task", "make_task"]

TASKS: Mapping[str, type[Task]] = {
    task.name: task for task in (Text, Digits, Teacher, Documents, Cifar10, Cifar100, Images)
}
"""The tasks by name."""


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """Returns a task.

    Args:
        name: Its name.
        options: The fields of its class.

    Raises:
        SDPError: If there is no such task or option, or its data are not there.
    """
    if name not in TASKS:
        raise SDPError(f"There is no task {name!r}.{did_you_mean(name, TASKS)} The tasks are {', '.join(TASKS)}.")
    known = {field.name: field.default for field in fields(TASKS[name])}  # type: ignore[arg-type]  # all tasks are dataclasses
    for key, value in options.items():
        if key not in known:
            raise SDPError(
                f"The task {name!r} has no option {key!r}.{did_you_mean(key, known)} Its options are "
                f"{', '.join(known)}."
            )
        _check(name, key, value, known[key])
    return TASKS[name](**options)


def _check(task: str, key: str, value: Any, default: Any) -> None:
    """Raises an `SDPError` if the value of an option cannot be: sizes count from 1, and deviations from 0."""
    wanted, is_right = "text", isinstance(value, str)
    if isinstance(default, int):
        wanted, is_right = "a whole number from 1", type(value) is int and value >= 1
    elif isinstance(default, float):
        wanted, is_right = "a number from 0", type(value) in (int, float) and 0 <= value < float("inf")
    if not is_right:
        raise SDPError(f"The option {key} of the task {task!r} must be {wanted}, got {value!r}.")
