"""Models whose masked original is not finite where an operator meets a 0: nothing is cut or dropped there.

The subnetwork would be finite, and so differ from the original with masked parameters. Once blocks were looked for with
a list of their own of what operators do at 0. It took the first five of these branches for droppable.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile import BlockPolicy, NeuronPolicy, check
from sdp_compile.capture import capture
from sdp_compile.structure.analysis import analyse

Branch = Callable[["Residual", Tensor], Tensor]

BRANCHES: dict[str, Branch] = {
    "root as a power": lambda m, x: m.a(x).abs() ** 0.5,
    "hypotenuse": lambda m, x: m.c(torch.hypot(m.a(x), m.b(x))),
    "addcdiv": lambda m, x: m.c(torch.addcdiv(x, x, m.a(x))),
    "xlogy": lambda m, x: m.c(torch.special.xlogy(x, m.a(x).square())),
    "polygamma": lambda m, x: m.c(torch.polygamma(1, m.a(x))),
    "logit of [0, 1]": lambda m, x: m.c(torch.logit(0.9 * torch.tanh(m.a(x)).square(), eps=0.0)),
    "zeta": lambda m, x: m.c(torch.special.zeta(2.0, m.a(x).square())),
    "layer norm without eps": lambda m, x: m.c(F.layer_norm(m.a(x), (6,), eps=0.0)),
    "group norm without eps": lambda m, x: m.c(F.group_norm(m.a(x), 2, eps=0.0)),
    "RMS norm without eps": lambda m, x: m.c(F.rms_norm(m.a(x), (6,), eps=0.0)),
    "layer norm of heads": lambda m, x: m.c(F.layer_norm(m.a(x).view(-1, 3, 2), (2,), eps=0.0).flatten(1)),
    "0 ** 0 of complex numbers": lambda m, x: m.c((torch.complex(m.a(x), m.b(x)) ** m.d(x.to(torch.cdouble))).abs()),
}


class Residual(nn.Module):
    """Two ordinary branches, and the one in question."""

    def __init__(self, branch: str) -> None:
        super().__init__()
        self.branch = branch
        self.stem, self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.a, self.b, self.c = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.d = nn.Linear(6, 6, bias=False, dtype=torch.cdouble)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.first(torch.tanh(x))
        x = x + self.second(torch.tanh(x))
        return self.head(x + BRANCHES[self.branch](self, x))


@pytest.mark.parametrize("branch", BRANCHES)
def test_nothing_is_dropped_or_cut_there(branch: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(branch).double(), torch.randn(3, 5, dtype=torch.float64)
    blocks = analyse(capture(model, (x,))).blocks.blocks
    assert [block.parameters[0] for block in blocks] == ["first.weight", "second.weight"]
    assert check(model, BlockPolicy(coverage=0.5), (x,), workers=2).verdict == "exact"


@pytest.mark.parametrize("branch", BRANCHES)
def test_axes_through_it_are_left_whole(branch: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(branch).double(), torch.randn(3, 5, dtype=torch.float64)
    result = check(model, NeuronPolicy(coverage=0.5, scope="all"), (x,), workers=2)
    assert result.verdict in ("exact", "refused"), result.reason
