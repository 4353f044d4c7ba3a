"""A subnetwork made by hand: a small network with BatchNorm, cut along its hidden axis without any compiler."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sdp_compile.ir.program import Capture, Program, StateTensor
from sdp_compile.ownership.owners import Ownership
from sdp_compile.planning.families import CutFamily
from sdp_compile.planning.holdings import LoweringKind, holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.structure.layout import Layout, Leaf, Product

HIDDEN, WIDTH, CLASSES = 8, 6, 5


class Net(nn.Module):
    """Each hidden unit holds two neurons; ``tied`` is another name of the output bias, ``frozen`` gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * HIDDEN)
        self.norm = nn.BatchNorm1d(2 * HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, CLASSES)
        self.tied = self.down.bias
        self.frozen = nn.Parameter(torch.ones(CLASSES), requires_grad=False)
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("offset", torch.zeros(CLASSES))
        self.register_buffer("scratch", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.norm(self.up(x)))) * self.frozen + self.offset


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net().double()
    with torch.no_grad():
        for tensor in (*net.parameters(), net.offset):
            tensor.copy_(torch.randn_like(tensor))
    return net


def capture_of(net: Net) -> Capture:
    graph = fx.Graph()  # only what the runtime reads off a graph: which buffers are statistics
    mean, variance = graph.get_attr("norm.running_mean"), graph.get_attr("norm.running_var")
    x = graph.placeholder("x")
    graph.call_function(torch.ops.aten.batch_norm.default, (x, None, None, mean, variance, True, 0.1, 1e-5, False))
    graph.call_function(torch.ops.aten.add_.Tensor, (graph.get_attr("norm.num_batches_tracked"), 1))
    parameters = {
        name: StateTensor(tuple(p.shape), p.dtype, "parameter", p.requires_grad) for name, p in net.named_parameters()
    }
    buffers = {
        name: StateTensor(tuple(b.shape), b.dtype, "buffer", False, name != "scratch")
        for name, b in net.named_buffers()
    }
    canonical = {id(tensor): name for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    aliases = {name: canonical[id(tensor)] for name, tensor in net.state_dict(keep_vars=True).items()}
    with torch.device("meta"):
        skeleton = Net().double()
    skeleton.scratch = net.scratch.clone()
    spec: Any = None
    return Capture(
        {"train": Program("train", graph, spec, spec, {})}, {**parameters, **buffers}, aliases, {}, skeleton, True
    )


def plan_of(capture: Capture, owners: list[tuple[int, ...]], workers: int) -> Plan:
    """The plan in which hidden unit u belongs to ``owners[u]``."""
    hidden: Layout = Product((Leaf(HIDDEN, "hidden"), Leaf(2)))
    layouts: dict[str, tuple[Layout, ...]] = {
        name: tuple(Leaf(size) for size in tensor.shape) for name, tensor in capture.state.items()
    }
    layouts["up.weight"] = (hidden, Leaf(WIDTH))
    layouts["down.weight"] = (Leaf(CLASSES), hidden)
    for name in ("up.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        layouts[name] = (hidden,)
    ownership = Ownership.of(owners)
    family = CutFamily(
        "hidden", "axis", HIDDEN, (8,) * HIDDEN, (1.0,) * HIDDEN, "", 0, ("up.weight",), replicas=ownership.replicas
    )
    order = tuple(name for name in capture.state if name not in ("idle", "scratch"))
    return Plan(workers, (family,), {"hidden": ownership}, capture.state, capture.aliases, layouts, {}, order, (), {})


class Subnet(Subnetwork):
    """What the runtime asks of an SDPModule, with a forward written by hand."""

    number = -1

    def __init__(self, net: Net, plan: Plan, rank: int, capture: Capture, lowering: LoweringKind = "sliced") -> None:
        super().__init__()
        self.holdings, self.capture, self.peers = holdings(lowering, plan, rank), capture, None
        values = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        for name, tensor in slice_tensors(self.holdings, capture, values).items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(last, tensor)
            else:
                owner.register_buffer(last, tensor, persistent=name != "scratch")
        self.down.register_parameter("bias", self.tied)  # the canonical name is the first one: "tied"

    def forward(self, x: Tensor) -> Tensor:
        masks = dict.fromkeys(self.plan.state)
        if self.holdings.lowering == "masked":
            masks.update((name, self.plan.mask(name, self.rank)) for name in self.plan.state)

        def value(name: str) -> Tensor:
            tensor, mask = self.get_parameter(name), masks[name]
            return tensor if mask is None else torch.where(mask, tensor, 0)

        hidden = F.linear(x, value("up.weight"), value("up.bias"))
        hidden = F.batch_norm(
            hidden,
            self.norm.running_mean,
            self.norm.running_var,
            value("norm.weight"),
            value("norm.bias"),
            training=self.training,
        )
        if self.training:
            self.norm.num_batches_tracked.add_(1)
        return F.linear(torch.relu(hidden), value("down.weight"), value("tied")) * self.frozen + self.offset


CYCLIC = [(0, 3), (0, 3), (0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3)]
"""Four workers, two owners of each unit."""

SCATTERED = [(0, 1, 2), (1, 3), (0,), (2, 3), (0, 1, 2), (1, 2, 3), (2,), (0, 1, 3)]
"""Units of equal owners lie apart; some units have one owner."""


def batch(seed: int, size: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, WIDTH, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def oracle_gradients(net: Net, plan: Plan, batches: dict[int, list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """Each element's mean over its owners of the gradients that the original model has with masked parameters.

    ``batches`` are each worker's, whose gradients it sums.
    """
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    count = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for rank, own in batches.items():
        masks = {name: plan.mask(name, rank).double() for name, _ in net.named_parameters()}
        leaves = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
        net.train()
        for x, y in own:
            masked = {name: leaf * masks[name] for name, leaf in leaves.items()}
            buffers = {name: b.clone() for name, b in net.named_buffers()}
            F.cross_entropy(torch.func.functional_call(net, {**masked, **buffers}, (x,)), y).backward()
        for name, leaf in leaves.items():
            total[name] += 0 if leaf.grad is None else leaf.grad * masks[name]
            count[name] += masks[name]
    return {name: total[name] / count[name] for name in total}
