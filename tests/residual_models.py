"""Small models with residual branches, and a runner for programs, shared by the tests of blocks and their passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.program import Capture, Program
from sdp_compile.passes import PassContext
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.structure.analysis import Analysis
from sdp_compile.structure.blocks.block import Blocks

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Inputs = tuple[Any, ...] | dict[str, Any]
Case = Callable[[], tuple[nn.Module, Inputs]]


def torchvision_model(name: str, size: int = 64, **options: Any) -> tuple[nn.Module, Inputs]:
    import torchvision

    return torchvision.models.get_model(name, **options), (torch.randn(2, 3, size, size),)


def resnet18() -> tuple[nn.Module, Inputs]:
    return torchvision_model("resnet18", 32, num_classes=10)


def small_swin() -> tuple[nn.Module, Inputs]:
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.2, num_classes=10)
    return model, (torch.randn(2, 3, 32, 32),)


def small_convnext() -> tuple[nn.Module, Inputs]:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return ConvNeXt(settings, stochastic_depth_prob=0.2, num_classes=10), (torch.randn(2, 3, 32, 32),)


def _tokens() -> Inputs:
    return {"input_ids": torch.arange(20).reshape(2, 10) % 50}


def gpt2(layers: int = 2) -> tuple[nn.Module, Inputs]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, n_embd=32, n_head=4, vocab_size=50, n_positions=32, use_cache=False)
    config.bos_token_id = config.eos_token_id = None
    return GPT2LMHeadModel(config), _tokens()


def llama() -> tuple[nn.Module, Inputs]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, vocab_size=50, use_cache=False)), _tokens()


def bert() -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForMaskedLM(BertConfig(**sizes, vocab_size=50)), _tokens()


def albert() -> tuple[nn.Module, Inputs]:
    from transformers import AlbertConfig, AlbertForMaskedLM

    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    return AlbertForMaskedLM(AlbertConfig(**sizes, embedding_size=16, vocab_size=50)), _tokens()


def gpt_neox() -> tuple[nn.Module, Inputs]:
    """Attention and MLP in parallel."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, vocab_size=50, use_cache=False)), _tokens()


def t5() -> tuple[nn.Module, Inputs]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(num_layers=2, d_model=32, num_heads=4, d_kv=8, d_ff=48, vocab_size=50, use_cache=False)
    ids = torch.arange(20).reshape(2, 10) % 50
    return T5ForConditionalGeneration(config), {"input_ids": ids, "decoder_input_ids": ids}


class Runner(fx.Interpreter):
    """Runs a program's graph eagerly; state comes from a mapping by canonical name."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=program.graph)
        self.program = program
        self.tensors = tensors

    def fetch_attr(self, target: str) -> torch.Tensor:
        return self.tensors[target]

    def __call__(self, inputs: Inputs) -> Any:
        call = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        return pytree.tree_unflatten(list(self.run(*pytree.tree_leaves(call))), self.program.out_spec)


def context_without(
    blocks: Blocks, capture: Capture, units: Iterable[int], lowering: LoweringKind, family: str = "blocks"
) -> PassContext:
    """What passes are told of a rank that owns everything but these units."""
    dropped = frozenset(units)
    numbers = [number for unit in dropped for number in blocks.units(family)[unit]]
    gone = {name for n in numbers for name in (*blocks.blocks[n].parameters, *blocks.blocks[n].buffers)}
    plan = SimpleNamespace(
        masking="forward",
        state=capture.state,
        block_family=family,
        dropped_blocks=lambda rank: dropped,
    )
    holdings = SimpleNamespace(
        rank=0, lowering=lowering, buffers={}, constants={}, keeps=lambda name: lowering == "masked" or name not in gone
    )
    analysis = Analysis(capture, capture.programs, None, blocks)  # type: ignore[arg-type]
    return PassContext(analysis, plan, holdings)  # type: ignore[arg-type]
