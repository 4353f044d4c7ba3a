"""Wrappers for other kinds of parallelism are refused before they change a value, wherever the module is nested."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable import checkpoint_activation
from torch.distributed._composable.replicate import replicate
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from sdp_compile import SDPModule, ShardedOptimizer, sdp_compile
from sdp_compile.errors import SDPError
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(180)


class Mine(nn.Module):
    """A user's module that holds a compiled one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.inner = nn.ModuleDict({"body": body})

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner["body"](self.first(x))
        return result


def compiled(seed: int = 0, **options: Any) -> SDPModule:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 5))
    return sdp_compile(model, "neuron", torch.randn(4, 6), **options)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def refusals(module: SDPModule, calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """What each call raises; none may change a value or an attribute."""
    before, kinds = values(module), [type(part) for part in module.modules()]
    found = {}
    for name, call in calls.items():
        with pytest.raises(SDPError) as raised:
            call()
        found[name] = str(raised.value)
        after = values(module)
        assert all(torch.equal(after[key], before[key]) for key in before), name
        assert [type(part) for part in module.modules()] == kinds, name
    return found


def wrapped(rank: int) -> Any:
    torch._dynamo.config.suppress_errors = False
    module, mesh = compiled(), init_device_mesh("cpu", (2,))
    graph = torch.compile(module, backend="eager")
    adamw = torch.optim.AdamW
    everyone = list(module.parameters())

    def step_zero() -> None:
        optimizer = ZeroRedundancyOptimizer(everyone, adamw, lr=0.1)
        module(torch.randn(4, 6)).sum().backward()
        optimizer.step()

    found = refusals(
        module,
        {
            "ddp": lambda: DistributedDataParallel(module),
            "ddp unsynchronised": lambda: DistributedDataParallel(module, init_sync=False),
            "ddp nested": lambda: DistributedDataParallel(Mine(module)),
            "ddp compiled": lambda: DistributedDataParallel(graph),
            "ddp nested compiled": lambda: DistributedDataParallel(Mine(graph)),
            "ddp part": lambda: DistributedDataParallel(module.get_submodule("0")),
            "ddp part nested": lambda: DistributedDataParallel(Mine(module.get_submodule("0"))),
            "fsdp": lambda: FullyShardedDataParallel(module, device_id=torch.device("cpu")),
            "fsdp nested": lambda: FullyShardedDataParallel(
                Mine(module), device_id=torch.device("cpu"), auto_wrap_policy=ModuleWrapPolicy({nn.Linear})
            ),
            "fully_shard": lambda: fully_shard(module, mesh=mesh),
            "fully_shard nested": lambda: fully_shard(Mine(module), mesh=mesh),
            "fully_shard list": lambda: fully_shard([module.get_submodule("0"), module.get_submodule("1")], mesh=mesh),
            "fully_shard compiled": lambda: fully_shard(graph, mesh=mesh),
            "replicate": lambda: replicate(module),
            "replicate nested": lambda: replicate(Mine(module)),
            "data parallel": lambda: nn.parallel.replicate(Mine(module), [0, 1]),
            "zero": lambda: ZeroRedundancyOptimizer(module.parameters(), adamw, lr=0.1),
            "zero nested": lambda: ZeroRedundancyOptimizer(Mine(module).parameters(), adamw, lr=0.1),
            "zero list": step_zero,
            "averager function": lambda: average_parameters(module.parameters(), dist.group.WORLD),
            "averager": lambda: PeriodicModelAverager(2, warmup_steps=0).average_parameters(module.parameters()),
        },
    )
    # What is fine stays so: other parts of the model, and a compiled module that a wrapper's forward calls.
    head = DistributedDataParallel(nn.Linear(5, 3))
    head(module(torch.randn(4, 6))).sum().backward()

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.teachers = nn.Linear(5, 5), [module]

        def forward(self, x: Tensor) -> Tensor:
            assert list(self.teachers[0].parameters())
            result: Tensor = self.own(self.teachers[0](x))
            return result

    DistributedDataParallel(Student())(torch.randn(4, 6)).sum().backward()
    checkpoint_activation.checkpoint(Mine(module))(torch.randn(4, 6)).sum().backward()
    ShardedOptimizer(module, adamw, lr=0.1)
    return found


def test_wrappers_are_refused() -> None:
    for found in run_workers(wrapped, 2):
        for name, text in found.items():
            wrapper = {
                "ddp": "DistributedDataParallel",
                "fsdp": "FullyShardedDataParallel",
                "fully_shard": r"fully_shard\(\)",
                "replicate": r"replicate\(\)",
                "data": "DataParallel",
                "zero": "ZeroRedundancyOptimizer",
                "averager": r"average_parameters\(\)",
            }[name.split()[0]]
            assert re.match(wrapper, text), (name, text)
            assert ("sdp.ShardedOptimizer" if name.startswith("zero") else "averages the gradients") in text


def test_without_a_process_group_too() -> None:
    module = compiled(workers=2, rank=1)
    code = "class DeepSpeedEngine:\n    def __init__(self, model):\n        list(model.named_parameters())"
    engine: dict[str, Any] = {"__name__": "deepspeed.runtime.engine"}
    exec(code, engine)
    with pytest.raises(SDPError, match=r"^DeepSpeed cannot take a module from sdp\.compile"):
        engine["DeepSpeedEngine"](Mine(module))


def test_listing_modules_is_as_before() -> None:
    module = compiled(workers=1)
    names = ["", "0", "0.0", "0.1", "1"]
    assert [name for name, _ in module.named_modules()] == names
    assert [name for name, _ in module.named_modules(prefix="a")] == ["a", *(f"a.{name}" for name in names[1:])]
    assert [name for name, _ in Mine(module).inner.named_modules()] == ["", "body", *(f"body.{n}" for n in names[1:])]
    twice = nn.ModuleList([module, module])
    assert len(list(twice.named_modules())) == 6 and len(list(twice.named_modules(remove_duplicate=False))) == 11
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = torch.compile(lambda: sum(p.sum() for p in module.parameters()), backend="eager", fullgraph=True)
        torch.testing.assert_close(inside(), sum(p.sum() for p in module.parameters()))
