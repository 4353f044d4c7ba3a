"""A rule for an operator of one's own: python examples/extend/rule.py"""

import torch
from torch import Tensor, nn

import sdp_compile as sdp


# --- the operator: a squared ReLU with one scale per channel, as a library with a fused kernel would register it
@torch.library.custom_op("examples::scaled_square", mutates_args=())
def scaled_square(x: Tensor, scale: Tensor) -> Tensor:
    return x.relu().square() * scale


@scaled_square.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, gradient):
    x, scale = ctx.saved_tensors
    positive = x.relu()
    per_channel = (gradient * positive.square()).flatten(0, -2).sum(0)
    return gradient * 2 * positive * scale, per_channel


scaled_square.register_autograd(backward, setup_context=setup_context)


# --- the rule: which dimensions are the same axis, and where the result is 0
@sdp.rule("examples::scaled_square")
def scaled_square_rule(ctx: "sdp.RuleContext", x: sdp.Value, scale: sdp.Value) -> sdp.Value:
    """The channels of ``x`` and ``scale`` are one axis; the result is 0 where either of them is."""
    ctx.unify(x.dims[-1], scale.dims[0])
    batch = (x.is_zero(dim) for dim in range(x.ndim - 1))
    return sdp.Value(x.dims, (*batch, x.is_zero(-1) or scale.is_zero(0)))


# --- a model that uses it
class FeedForward(nn.Module):
    def __init__(self, width: int = 8, hidden: int = 32) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.scale = nn.Parameter(torch.ones(hidden))
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(scaled_square(self.up(x), self.scale))


if __name__ == "__main__":
    module = sdp.compile(FeedForward(), sdp.NeuronPolicy(coverage=0.5), (torch.randn(2, 8),), workers=4, rank=0)
    for name, parameter in module.named_parameters():
        print(name, list(parameter.shape))
