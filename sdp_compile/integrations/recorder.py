"""What a function calls its model with."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


class CalledError(Exception):
    """A `Recorder` was called.

    Attributes:
        arguments: The arguments by name.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class Recorder(nn.Module):
    """Stands for a model and stops at its first call, with a `CalledError`.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        vars(self)["_model"] = model

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_model"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises `CalledError`."""
        names = list(inspect.signature(self._model.forward).parameters)
        raise CalledError({**dict(zip(names, args, strict=False)), **kwargs})
