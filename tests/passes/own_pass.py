"""A model, a pass of one's own, and the model compiled with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile import NeuronPolicy
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes import Pass, PassContext, inherited

aten = torch.ops.aten

X = torch.ones(3, 4)


class MLP(nn.Module):
    """Two linear layers without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


MODEL = MLP()


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the output by a number."""

    name: ClassVar[str] = "scale"
    factor: float = 2.0

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        output = program.graph.output_node()
        (value,) = output.args[0]  # type: ignore[misc, union-attr]
        with program.graph.inserting_before(output):
            scaled = program.graph.call_function(aten.mul.Tensor, (value, self.factor))
        scaled.meta = inherited(value)  # type: ignore[arg-type]
        output.replace_input_with(value, scaled)  # type: ignore[arg-type]
        return program


def compiled(passes: Any = None, policy: NeuronPolicy | None = None, **options: Any) -> Any:
    """Returns the model as worker 0 of two gets it."""
    policy = policy or NeuronPolicy(replicas=1)
    return sdp.compile(MODEL, policy, (X,), workers=2, rank=0, passes=passes, **options)
