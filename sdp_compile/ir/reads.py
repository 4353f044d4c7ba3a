"""What forward reads besides tensors: a graph holds the values that they had at capture."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sdp_compile.ir.plain import MISSING, frozen

ReadKind = Literal["attribute", "buffer", "global", "environment"]


@dataclass(frozen=True)
class Read:
    """One Python value that forward read.

    Attributes:
        kind: An attribute of a module, the value of a buffer with one element, a global variable or an environment
            variable.
        owner: The path of the module, the Python module of the global variable, or ``""``.
        name: The name in it; of a buffer the full name.
        value: The frozen value.
    """

    kind: ReadKind
    owner: str
    name: str
    value: Any

    def now(self, model: nn.Module) -> Any:
        """Returns the frozen value that forward would read now.

        Args:
            model: The model, or its skeleton; for a buffer, a module that holds the buffer's value.
        """
        if self.kind == "environment":
            return frozen(os.environ.get(self.name))
        if self.kind == "global":
            module = sys.modules.get(self.owner)
            return frozen(getattr(module, self.name)) if hasattr(module, self.name) else MISSING
        if self.kind == "buffer":
            return frozen(model.get_buffer(self.name).item())
        owner: nn.Module = model
        for key in filter(None, self.owner.split(".")):
            owner = owner._modules[key]  # type: ignore[assignment]  # its name may be that of an attribute
        return frozen(getattr(owner, self.name)) if hasattr(owner, self.name) else MISSING

    def __str__(self) -> str:
        if self.kind == "environment":
            return f"environment variable {self.name}"
        if self.kind == "buffer":
            return f"the value of buffer {self.name!r}"
        where = f" of module {self.owner!r}" if self.kind == "attribute" and self.owner else ""
        where = f" of {self.owner}" if self.kind == "global" else where
        return f"{'global variable' if self.kind == 'global' else 'attribute'} {self.name!r}{where}"
