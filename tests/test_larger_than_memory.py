"""Models larger than the machine: compiled on the meta device, filled slice by slice, in time linear in their depth."""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.capture import capture
from sdp_compile.compiler import assemble
from sdp_compile.ir.program import Capture
from sdp_compile.lowering import lower
from sdp_compile.planning.making import make_plan
from sdp_compile.structure.analysis import analyse
from tests.distributed import run_workers

MIB = 2**20
POLICIES = (NeuronPolicy(coverage=0.5), BlockPolicy(coverage=0.5))


def memory(field: str) -> int:
    """Bytes of this process, from Linux: ``VmRSS`` (resident), ``VmHWM`` (its peak) or ``VmData`` (allocated)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def peak_of(run: Callable[[], object]) -> int:
    """The bytes by which resident memory grows while ``run`` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Within, allocating more than ``nbytes`` fails, used or not."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def llama(**sizes: int) -> nn.Module:
    config = transformers.LlamaConfig(tie_word_embeddings=False, **sizes)
    return transformers.LlamaForCausalLM(config)


def compile_on_the_meta_device(rank: int) -> None:
    with torch.device("meta"):  # two layers of the 70 B model; one projection of its MLP has 896 MiB
        model = llama(
            hidden_size=8192,
            intermediate_size=28672,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=128256,
            num_hidden_layers=2,
        )
    with at_most(768 * MIB):
        with pytest.raises(RuntimeError, match="memory"):
            torch.empty(8192, 28672)
        analysis = analyse(capture(model, {"input_ids": torch.ones(2, 8, dtype=torch.long)}))
        for policy in POLICIES:
            plan = make_plan(analysis, policy, 64)
            module = assemble(lower(analysis, plan, 5), model)
            assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
            assert plan.memory(5).parameters < 0.85 * plan.memory().parameters


def test_compiling_on_the_meta_device_allocates_no_weight() -> None:
    # In a process of its own: what earlier tests allocated and freed would be used again, beside every limit.
    run_workers(compile_on_the_meta_device, 1)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def tower(depth: int, width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), *(Block(width, hidden) for _ in range(depth)))


def zeros_on_disk(model: nn.Module, path: Path) -> Path:
    """A safetensors file of zeros in the shapes of the model, written without holding them."""
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path


def fill_own_slices(rank: int, source: str, folder: Path) -> None:
    weights = None
    with torch.device("meta"):
        model = tower(depth=8, width=768, hidden=8192)  # 16 matrices of 24 MiB
    if source == "file":
        weights = zeros_on_disk(model, folder / "model.safetensors")
    analysis = analyse(capture(model, (torch.ones(2, 4),)))
    plan = make_plan(analysis, NeuronPolicy(coverage=0.25), 4)
    module = assemble(lower(analysis, plan, 1), model)
    own, full = plan.memory(1).parameters, plan.memory().parameters
    assert own < full / 3.5
    # What the allocator keeps of freed memory (glibc: at most 64 MiB) and modules imported on the way come on top.
    assert peak_of(lambda: module.materialize(weights)) < own + 24 * MIB + 96 * MIB < 0.7 * full
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("source", ["initialisers", "file"])
def test_a_rank_holds_its_slices_and_one_full_tensor(source: str, tmp_path: Path) -> None:
    run_workers(fill_own_slices, 1, source, tmp_path)


def test_a_file_without_computed_buffers_gives_the_original_model(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "num_hidden_layers": 1,
    }
    torch.manual_seed(0)
    model = llama(**sizes)
    computed = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    assert computed  # rotary frequencies
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = llama(**sizes)
    tokens = torch.randint(0, 64, (2, 8))
    module = sdp_compile(empty, NeuronPolicy(coverage=1.0), {"input_ids": tokens}, workers=2, rank=1)
    module.materialize(tmp_path)
    torch.testing.assert_close(module(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_work_after_export_grows_linearly_with_depth() -> None:
    """Counted in calls of functions: what is quadratic would quadruple between two doublings."""

    def after_export(model: nn.Module, captured: Capture) -> None:
        analysis = analyse(captured)
        for policy in POLICIES:
            plan = make_plan(analysis, policy, 8)
            assert plan.digest
            assemble(lower(analysis, plan, 3), model).materialize()

    def calls(depth: int) -> int:
        with torch.device("meta"):
            model = tower(depth, width=16, hidden=32)
        captured, profile = capture(model, (torch.ones(2, 4),)), cProfile.Profile()
        profile.runcall(after_export, model, captured)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    calls(4)  # what happens only once in a process
    few, more, many = (calls(depth) for depth in (4, 8, 16))
    assert many - more < 2.2 * (more - few)
