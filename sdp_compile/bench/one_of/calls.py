"""How many operators each phase of a step calls: what bounds a step that launches kernels slower than they run."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.bench.contestant import Contestant
from sdp_compile.bench.one_of.peaks import phases


class Calls(TorchDispatchMode):
    """Context that counts the operators that are called.

    A call that takes lists of tensors counts once, though it may launch several kernels. What compiled code launches
    is not seen.

    Attributes:
        views: Those that return views of tensors, and launch nothing.
        others: All others.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.views = self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            self.views += 1
        else:
            self.others += 1
        return func(*args, **(kwargs or {}))


def count_calls(contestant: Contestant) -> dict[str, int]:
    """Runs a step. Returns the calls of each of its phases, without views."""
    found = {}
    for name, run in phases(contestant).items():
        with Calls() as calls:
            run()
        found[name] = calls.others
    return found
