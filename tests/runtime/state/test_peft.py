"""PEFT's own adapters: the model is cut as without them, and they are saved and loaded in PEFT's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile import NeuronPolicy, SDPError
from tests.distributed import run_workers

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TARGETS = {"gpt2": ["c_attn", "c_fc", "c_proj"], "llama": ["q_proj", "v_proj", "up_proj", "down_proj"]}


def base(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0
            )
        )
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
        )
    )


def adapted(name: str) -> Any:
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(base(name), config)


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def kept(plan: Any, prefix: str = "") -> dict[str, int]:
    """How many elements of each of the base's parameters worker 0 has, by the base's names."""
    result = {}
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter" and "lora_" not in name:
            result[name.removeprefix(prefix).replace(".base_layer", "")] = int(plan.mask(name, 0).sum())
    return result


@pytest.mark.parametrize("name", TARGETS)
def test_a_model_with_adapters_is_cut_as_without(name: str) -> None:
    policy = NeuronPolicy(coverage=0.5)
    plain = sdp.plan(base(name), policy, inputs(), workers=2)
    plan = sdp.plan(adapted(name), policy, inputs(), workers=2)
    assert kept(plan, "base_model.model.") == kept(plain)
    assert any("lora_" in key and plan.is_cut(key) for key in plan.state)
    assert any("c_fc" in key or "up_proj" in key for key in plan.state if plan.is_cut(key))


def _train(rank: int, folder: str) -> None:
    module: Any = sdp.compile(adapted("llama"), NeuronPolicy(coverage=0.5), inputs())
    assert module.config.hidden_size == 16 and module.dtype == torch.float32 and module.device == torch.device("cpu")
    assert module.active_adapter == "default" and isinstance(module.get_input_embeddings(), nn.Embedding)
    for call in (lambda: module.save_pretrained(folder), lambda: module.generate(**inputs())):
        with pytest.raises(SDPError, match=r"full_model\(\)"):
            call()
    before = {name: value.clone() for name, value in module.full_state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 0.01)
    for step in range(3):
        optimizer.zero_grad()
        module(**inputs(10 * step + rank)).loss.backward()
        optimizer.step()
    full = module.full_model()
    for name, value in full.state_dict().items():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name
    state = peft.get_peft_model_state_dict(full)
    assert set(state) == set(peft.get_peft_model_state_dict(adapted("llama")))
    if rank == 0:
        full.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(base("llama"), folder)
        assert torch.equal(again.eval()(**inputs()).logits, full.eval()(**inputs()).logits)
    fresh = adapted("llama")
    peft.set_peft_model_state_dict(fresh, state)
    module.load_full_state_dict(fresh.state_dict())
    for name, value in module.full_state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name


def test_adapters_are_trained_saved_and_loaded_in_the_layout_of_peft(tmp_path: Path) -> None:
    run_workers(_train, 2, str(tmp_path / "adapter"))
