"""A pass of one's own: python examples/extend/count_operators.py"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import sdp_compile as sdp


@sdp.register_pass("count_operators")
@dataclass(frozen=True)
class CountOperators(sdp.Pass):
    """Prints which operators a worker's graph calls, most frequent first. The program stays as it is."""

    name: ClassVar[str] = "count_operators"

    most: int = 3
    """How many operators are printed."""

    def run(self, program: sdp.Program, context: sdp.PassContext) -> sdp.Program:
        calls = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
        shown = ", ".join(f"{times} {operator}" for operator, times in calls.most_common(self.most))
        print(f"worker {context.rank}, {program.mode}: {shown}")
        return program


if __name__ == "__main__":
    layers = [nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(3)]
    sdp.compile(nn.Sequential(*layers), "neuron", (torch.randn(2, 8),), workers=4, rank=0, passes="count_operators")
