"""The shards of a worker, and what a reduce-scatter leaves in them, without other processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.runtime.gradients.by_levels import ByLevels
from sdp_compile.runtime.gradients.reduce_scatter import ReduceScatter
from sdp_compile.runtime.gradients.shard_layout import ShardLayout, parameters_of
from sdp_compile.runtime.packing.slots import Slot
from sdp_compile.runtime.sharding.gradient import ShardedGradient
from sdp_compile.runtime.sharding.shards import Shard
from tests.runtime.connected import WORKERS, subnet
from tests.runtime.gradients.alone import groups
from tests.runtime.stub import SCATTERED, Subnet

CUT = ["up.weight", "up.bias", "norm.weight", "norm.bias", "down.weight"]


def layout_of(module: Subnet) -> ShardLayout:
    slots = [Slot(bucket, module.holdings, None) for bucket in module.plan.buckets(module.rank, 64)]
    return ShardLayout(parameters_of(module, module.plan), module.holdings, slots)


def test_parameters_have_the_model_s_names_and_order() -> None:
    module = subnet(0, SCATTERED)
    assert list(parameters_of(module, module.plan)) == ["tied", "frozen", "idle", *CUT]


def test_all_workers_together_step_each_trained_element_once() -> None:
    stepped: dict[str, int] = {}
    modules = [subnet(rank, SCATTERED) for rank in range(WORKERS)]
    for module in modules:
        for name, shards in layout_of(module).shards.items():
            stepped[name] = stepped.get(name, 0) + sum(shard.parameter.numel() for shard in shards)
    state = modules[0].plan.state
    for name in [*CUT, "tied"]:
        assert stepped[name] == torch.Size(state[name].shape).numel(), name
    assert stepped["frozen"] == WORKERS * 5


def test_a_worker_steps_alone_what_it_owns_alone() -> None:
    """Unit 2 with its two neurons belongs to worker 0, unit 6 to worker 2; all units have another owner on 1 and 3."""
    for rank, units in enumerate([1, 0, 1, 0]):
        layout = layout_of(subnet(rank, SCATTERED))
        sizes = {"up.weight": 12, "up.bias": 2, "norm.weight": 2, "norm.bias": 2, "down.weight": 10}
        expected = {name: size * units for name, size in sizes.items() if units}
        assert {
            name: sum(shard.parameter.numel() for _, shard in bucket.shards) for name, bucket in layout.alone.items()
        } == expected
        assert all((bucket.number, bucket.owners) == (-1, (rank,)) for bucket in layout.alone.values())
        numbers = [bucket.number for bucket in layout]
        assert numbers == [*sorted(layout.buckets), *[-1] * len(expected)]


def test_the_first_bucket_of_a_parameter_is_known() -> None:
    layout = layout_of(subnet(0, SCATTERED))
    for name, first in layout.first.items():
        assert first == min(
            n for n, bucket in layout.buckets.items() if any(piece == name for piece, _ in bucket.pieces)
        )
    assert set(layout.first) == {*CUT, "tied"}


class Engine:
    """What averages the gradients."""

    def __init__(self) -> None:
        self.groups = groups()


class Scattered:
    """Worker 0's reduction, without the collectives: chunk number n holds 100 n, 100 n + 1, ..."""

    def __init__(self) -> None:
        self.module = subnet(0, SCATTERED)
        self.layout = layout_of(self.module)
        self.parameters = parameters_of(self.module, self.module.plan)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0)
        self.engine: Any = Engine()
        self.buckets = {bucket.number: bucket for bucket in self.module.plan.buckets(0, 64)}
        route: Any = SimpleNamespace(groups=self.engine.groups)
        before = ByLevels(route, list(self.buckets.values()), self.module.plan.exchanges(64))
        self.reduction = ReduceScatter(self.engine, before, self.module, self.layout, self.optimizer)

    def reduce(self) -> None:
        for number in self.layout.buckets:
            self.reduction.keep(self.buckets[number], [self.averages(number)], self.parameters)

    def averages(self, number: int) -> Tensor:
        return 100.0 * number + torch.arange(self.layout.buckets[number].chunk, dtype=torch.float64)

    def check(self, times: int, alone: float) -> None:
        """Each shard holds the averages so many times; what the worker owns alone is so many times the gradient."""
        for number, bucket in self.layout.buckets.items():
            for offset, shard in bucket.shards:
                wanted = times * self.averages(number)[offset : offset + shard.parameter.numel()]
                assert torch.equal(self.part(shard.name, shard), wanted)
        for bucket in self.layout.alone.values():
            for _, shard in bucket.shards:
                assert torch.equal(self.part(shard.name, shard), torch.full_like(shard.parameter, alone))

    def part(self, name: str, shard: Shard) -> Tensor:
        gradient = self.parameters[name].grad
        assert isinstance(gradient, ShardedGradient) and gradient.fresh is None
        return gradient.parts[shard].reshape(-1)


@pytest.fixture
def scattered() -> Scattered:
    return Scattered()


def set_gradients(parameters: dict[str, nn.Parameter], value: float) -> None:
    for name in [*CUT, "tied"]:
        gradient = torch.full_like(parameters[name], value)
        if parameters[name].grad is None:
            parameters[name].grad = gradient
        else:
            torch.autograd.backward([parameters[name]], [gradient])


def test_each_shard_gets_the_averages_of_its_elements(scattered: Scattered) -> None:
    set_gradients(scattered.parameters, 7.0)
    scattered.reduce()
    scattered.check(1, 7.0)


def test_gradients_that_are_not_zeroed_add_up(scattered: Scattered) -> None:
    set_gradients(scattered.parameters, 7.0)
    scattered.reduce()
    set_gradients(scattered.parameters, 2.0)
    scattered.reduce()
    scattered.check(2, 9.0)
    scattered.reduce()  # without a gradient of this worker's own
    scattered.check(3, 9.0)


def test_a_missing_gradient_counts_as_zero(scattered: Scattered) -> None:
    scattered.reduce()
    scattered.check(1, 0.0)


def test_what_the_user_froze_gets_no_gradient(scattered: Scattered) -> None:
    frozen = scattered.parameters["up.bias"].requires_grad_(False)
    scattered.reduce()
    assert frozen.grad is None
    assert isinstance(scattered.parameters["tied"].grad, ShardedGradient)


def test_a_converted_parameter_s_gradient_has_its_dtype(scattered: Scattered) -> None:
    scattered.parameters["tied"].data = scattered.parameters["tied"].data.float()
    scattered.reduce()
    gradient = scattered.parameters["tied"].grad
    assert isinstance(gradient, ShardedGradient)
    assert {part.dtype for part in gradient.parts.values()} == {torch.float32}


def test_it_serves_one_optimizer_and_drops_sharded_gradients_at_its_end(scattered: Scattered) -> None:
    assert scattered.reduction.serves(scattered.optimizer)
    assert not scattered.reduction.serves(torch.optim.SGD(scattered.module.parameters(), lr=1.0))
    scattered.reduce()
    scattered.parameters["frozen"].grad = torch.ones(5, dtype=torch.float64)
    scattered.reduction.end()
    assert [name for name, p in scattered.parameters.items() if p.grad is not None] == ["frozen"]
