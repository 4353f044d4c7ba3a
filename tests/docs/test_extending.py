"""The examples of the "How to add" pages do what their pages say, and are exact against the eager model."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.oracle import assert_exact, randomise

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "extend"
PAGES = {
    name: page
    for page in (ROOT / "docs" / "extend").glob("*.md")
    for name in re.findall(r'--8<-- "examples/extend/(\w+)\.py"', page.read_text(encoding="utf-8"))
}


def load(name: str) -> dict[str, Any]:
    """The names of an example, which registers itself. Only in a worker: registries are global."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize("name", PAGES)
def test_it_prints_what_its_page_shows(name: str) -> None:
    shown = re.search(r"prints.*?```text\n(.*?)```", PAGES[name].read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == shown[1]


def test_every_example_has_a_page() -> None:
    assert sorted(PAGES) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


def exact_training(rank: int, model: nn.Module, policy: Any, x: torch.Tensor) -> Any:
    """Compiles for this rank of the process group, compares with the original model, and trains a step."""
    randomise(model)
    module = sdp.compile(model, policy, (x,))
    assert_exact(module, model, module.plan, rank, (x,), {})
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    before = module(x).square().mean()
    before.backward()
    optimizer.step()
    assert all(tensor.isfinite().all() for tensor in module.full_state_dict().values())
    return module


def rule_example(rank: int) -> list[int]:
    names = load("rule")
    x = torch.randn(3, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    module = exact_training(rank, names["FeedForward"]().double(), sdp.NeuronPolicy(coverage=0.5), x)
    assert sdp.check(names["FeedForward"](), sdp.NeuronPolicy(coverage=0.5), (x.float(),)).verdict == "exact"
    return list(module.scale.shape)


def test_a_rule_lets_an_axis_be_cut() -> None:
    assert run_workers(rule_example, 4) == [[16]] * 4


def without_the_rule(rank: int) -> str:
    source = (EXAMPLES / "rule.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "rule"}
    exec(source.replace('@sdp.rule("examples::scaled_square")\n', ""), names)
    with pytest.raises(sdp.NothingToPartition) as raised:
        sdp.compile(names["FeedForward"](), sdp.NeuronPolicy(coverage=0.5), (torch.randn(3, 8),))
    return str(raised.value)


def test_without_the_rule_nothing_is_cut_as_the_page_says() -> None:
    message = run_workers(without_the_rule, 2)[0]
    page = " ".join(PAGES["rule"].read_text(encoding="utf-8").split())
    assert message.partition(" Use ")[0] in page


def mlp(layers: int = 3, hidden: int = 10) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 5)) for _ in range(layers)]
    return nn.Sequential(*blocks).double()


def policy_example(rank: int) -> list[int]:
    load("policy")
    x = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    module = exact_training(rank, mlp(), {"policy": "tapered", "first": 1.0, "last": 0.25}, x)
    return [module.plan.owners(f"{layer}.0.weight[0]").replicas for layer in (1, 2)]


def test_a_policy_tapers() -> None:
    assert run_workers(policy_example, 4) == [[2, 1]] * 4


def design_example(rank: int) -> list[tuple[int, ...]]:
    load("design")
    x = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    policy = sdp.NeuronPolicy(coverage=0.5, design="striped", rules={"1.*": {"replicas": 1}})
    module = exact_training(rank, mlp(), policy, x)
    assert module.plan.owners("1.0.weight[0]").replicas == 1
    return list(module.plan.owners("0.0.weight[0]"))


def test_a_design_stripes() -> None:
    (owners, *others) = run_workers(design_example, 4)
    assert owners[:5] == [(0, 1), (1, 2), (2, 3), (0, 3), (0, 1)]
    assert all(other == owners for other in others)


def few_units(rank: int) -> int:
    """Three units for eight workers."""
    load("design")
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4))
    module = sdp.compile(model, sdp.NeuronPolicy(coverage=0.4, design="striped"), (torch.randn(2, 4),))
    return module.get_parameter("0.weight").shape[0]


def test_a_design_leaves_no_worker_without_a_unit() -> None:
    assert all(units > 0 for units in run_workers(few_units, 8))


def pass_example(rank: int) -> list[str]:
    """The pass runs before the parameters' gradients are reduced, in both modes, and changes nothing."""
    names = load("count_operators")
    x = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    model = randomise(mlp())
    with redirect_stdout(StringIO()) as printed:
        module = sdp.compile(model, "neuron", (x,), passes="count_operators")
    assert_exact(module, model, module.plan, rank, (x,), {})
    assert names["CountOperators"]() in module.lowered.passes
    assert module.code == sdp.compile(model, "neuron", (x,)).code
    return printed.getvalue().splitlines()


def test_a_pass_counts() -> None:
    for rank, lines in enumerate(run_workers(pass_example, 2)):
        calls = "6 aten.linear.default, 3 aten.tanh.default"
        assert lines == [f"worker {rank}, {mode}: {calls}" for mode in ("train", "eval")]
