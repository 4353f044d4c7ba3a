"""Tasks for studies: from data that every machine has, and from data sets that are present."""

from __future__ import annotations

from collections.abc import Mapping
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
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise SDPError(f"The task {name!r} does not take these options: {error}.") from None
