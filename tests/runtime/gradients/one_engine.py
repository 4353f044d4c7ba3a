"""The gradient engine of one worker, without others: it notes its calls, and the others agree with all it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sdp_compile.planning.regions import Region
from sdp_compile.runtime.gradients.engine import GradientEngine
from tests.runtime.gradients.alone import Noted, bucket, groups

BUCKETS = [bucket(2, a=([0],), b=([0],)), bucket(4, a=([],)), bucket(5, b=([1],)), bucket(9, c=([0, 1],))]
STARTS: list[Any] = [("start", 2, [1, 2, 0]), ("start", 5, [2, 0]), ("start", 9, [3, 3, 0])]
FINISHES = [("finish", 2), ("finish", 5), ("finish", 9)]


AT_THE_END, BY_A_HOOK, BY_A_GRAPH = "NoneType", "AccumulateGrad", "LaunchBackward"
"""Where in a backward a bucket is issued."""


class Three(nn.Module):
    """Parameters whose gradients are 1, 2 and 3, one that is frozen, and one that is not of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.extra = nn.Parameter(torch.zeros(2))


class Engine(GradientEngine):
    """An engine of one worker that notes its calls, and where in backward it issues buckets."""

    def __init__(self, **options: Any) -> None:
        self.three = Three()
        state = {
            name: SimpleNamespace(kind="parameter", requires_grad=name != "frozen")
            for name in ("a", "b", "c", "frozen")
        }
        holdings: Any = SimpleNamespace(plan=SimpleNamespace(state=state), region=lambda piece: Region(piece.index))
        route: Any = SimpleNamespace(groups=groups())
        super().__init__(self.three, holdings, route, BUCKETS, [True] * 10, **options)
        self.reduction = self.noted = Noted()
        self.during: list[str] = []
        start = self.noted.start

        def recorded(number: int, room: Any) -> None:
            self.during.append(type(torch._C._current_autograd_node()).__name__)
            start(number, room)

        self.noted.start = recorded

    def backward(self, more: Any = 0) -> None:
        three = self.three
        (three.a + 2 * three.b + 3 * three.c + more).sum().backward()

    def step(self, more: Any = 0) -> list[str]:
        """One backward on fresh gradients; where each bucket was issued."""
        self.three.zero_grad()
        self.during.clear()
        self.backward(more)
        return list(self.during)

    def gradients(self) -> list[Any]:
        return [None if p.grad is None else p.grad.tolist() for p in (self.three.a, self.three.b, self.three.c)]


AVERAGES = [[10, 1], [20, 20], [30, 30]]
"""The second element of ``a`` has no other owner, so it is in no bucket."""
