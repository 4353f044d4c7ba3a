"""torchtitan: ``config.model_spec = sdp_spec(model_registry("8B"), policy)`` for its own Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torchtitan.components.optimizer.utils import init_optim_state
from torchtitan.models.common.attention import FlexAttention, VarlenAttention
from torchtitan.models.common.moe import MoE
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.tools import utils

from sdp_compile.compiler import PolicyOrSchedule, sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.integrations.scheduling import STEPS_DONE, with_steps
from sdp_compile.runtime.module.sdp_module import SDPModule


def sdp_spec(spec: ModelSpec, policy: PolicyOrSchedule, example_inputs: Any = None, **options: Any) -> ModelSpec:
    """Returns a model specification with which torchtitan's Trainer trains each process's subnetwork.

    Its ``parallelize_fn`` initialises the whole model and compiles it with ``reduction="sum"``, in place of FSDP.
    Checkpoints hold the full model and the full optimizer states, under torchtitan's own names.

    Args:
        spec: A specification from torchtitan's model registry.
        policy: What is partitioned and how, as in `sdp_compile.compile`. A schedule that does not know its number of
            steps gets ``training.steps``.
        example_inputs: Inputs of one training call, as in `sdp_compile.compile`; by default tokens and positions of
            the Trainer's batch, which are what torchtitan's text data gives.
        options: Further keyword arguments of `sdp_compile.compile`.

    Returns:
        The specification for ``Trainer.Config.model_spec``.

    Raises:
        SDPError: If the model has attention masks or experts that the Trainer handles itself.
    """
    for kind in (FlexAttention, VarlenAttention):
        if any(True for _ in spec.model.traverse(kind.Config)):
            raise SDPError(
                f"{spec.name} {spec.flavor} uses {kind.__name__}, whose masks cannot be compiled. Set "
                "layer.attention.inner_attention = ScaledDotProductAttention.Config() for each layer in "
                "spec.model.layers: causal attention, also across the documents of a packed sequence."
            )
    if any(True for _ in spec.model.traverse(MoE.Config)):
        raise SDPError(
            f"{spec.name} {spec.flavor} has experts, which torchtitan's Trainer balances. Use a dense model."
        )
    return replace(
        spec,
        parallelize_fn=partial(_compiled, policy=policy, example_inputs=example_inputs, options=options),
        pipelining_fn=None,
        post_optimizer_build_fn=_save_full_states,
    )


class Accumulation:
    """Reduces gradients in the last backward of a step only, which it finds by counting forward calls."""

    def __init__(self, module: SDPModule, calls: int) -> None:
        """Watches a module.

        Args:
            module: The module.
            calls: How often a step calls it.
        """
        self._calls, self._number, self._waiting = calls, 0, ExitStack()
        module.register_forward_pre_hook(self._before_forward)

    def begin(self) -> None:
        """Begins a step."""
        self._number = 0
        self._waiting.close()

    def _before_forward(self, module: nn.Module, _args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self._number += 1
            self._waiting.close()
            if self._number < self._calls:
                assert isinstance(module, SDPModule)
                self._waiting.enter_context(module.no_sync())


class _Trained:
    """Comes before the class of a compiled module: what torchtitan does to a model after ``parallelize_fn``."""

    def to_empty(self, **_options: Any) -> _Trained:
        """Keeps the values: `sdp_spec` initialised the whole model before it was cut."""
        return self

    def init_weights(self, **_options: Any) -> None:
        """Keeps the values, too."""

    def state_dict(self: Any) -> Any:
        """Returns the full model's state. Collective."""
        return self.full_state_dict(cpu_offload=True)

    def load_state_dict(self: Any, state: Mapping[str, Any], strict: bool = True) -> Any:
        """Loads this worker's slices of a full state.

        Args:
            state: The state; torchtitan's holds other objects beside the model's tensors.
            strict: Ignored: a missing tensor is an error, and what is not the model's is not.
        """
        names = self.capture.skeleton.state_dict()
        return self.load_full_state_dict({name: state[name] for name in names if name in state})

    @property
    def _skip_lm_head(self) -> bool:
        return False

    @_skip_lm_head.setter
    def _skip_lm_head(self, _value: bool) -> None:
        raise SDPError(
            "ChunkedLossWrapper calls a part of the model by itself, which a compiled model does not allow. Set "
            "config.loss = CrossEntropyLoss.Config()."
        )


def _compiled(
    model: Any,
    *,
    parallel_dims: Any,
    training: Any,
    compile_config: Any,
    policy: PolicyOrSchedule,
    example_inputs: Any,
    options: Mapping[str, Any],
    **_others: Any,
) -> SDPModule:
    """Initialises the model and compiles it; the ``parallelize_fn`` of `sdp_spec`."""
    _check(parallel_dims, training, compile_config)
    device = torch.device(utils.device_type)
    model.to_empty(device=device)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    model.train()
    if example_inputs is None:
        tokens = torch.zeros(training.local_batch_size, training.seq_len, dtype=torch.long, device=device)
        positions = torch.arange(training.seq_len, device=device).expand(tokens.shape).contiguous()
        example_inputs = {"tokens": tokens, "positions": positions}
    policy = with_steps(policy, lambda: training.steps)
    compiled = sdp_compile(model, policy, example_inputs, **{"reduction": "sum", **options})
    rows = training.local_batch_size * parallel_dims.dp_replicate * parallel_dims.dp_shard
    vars(compiled)["_accumulation"] = Accumulation(compiled, max(1, training.global_batch_size // rows))
    kind = type(compiled)
    trained = type(kind.__name__, (_Trained, kind), {"__module__": kind.__module__})
    object.__setattr__(compiled, "__class__", trained)  # a compiled module refuses what its graph would not follow
    return compiled


def _check(parallel_dims: Any, training: Any, compile_config: Any) -> None:
    """Refuses settings that the compiled model would not follow."""
    wrong = [
        (
            "Tensor, context or expert parallelism does",
            max(parallel_dims.tp, parallel_dims.cp, parallel_dims.ep) > 1,
            "parallelism.tensor_parallel_degree and its like to 1",
        ),
        (
            "The mixed precision of FSDP does",
            training.mixed_precision_param != training.dtype,
            f'training.mixed_precision_param="{training.dtype}"',
        ),
        ("CPU offload does", training.enable_cpu_offload, "training.enable_cpu_offload=False"),
        ("Capture in CUDA graphs does", not training.disable_cuda_graphs, "training.disable_cuda_graphs=True"),
        (
            "torchtitan's compile of single layers does",
            compile_config.enable and "model" in compile_config.components,
            'compile.components=["loss"]',
        ),
    ]
    for what, is_set, remedy in wrong:
        if is_set:
            raise SDPError(f"{what} not work with sdp_spec(). Set {remedy}.")


def _save_full_states(optimizers: Any, model_parts: list[nn.Module], _parallel_dims: Any) -> None:
    """Makes torchtitan's optimizers save and load full states; the ``post_optimizer_build_fn`` of `sdp_spec`."""
    # After create_seed_checkpoint the model is not compiled.
    if isinstance(model_parts[0], SDPModule):
        # The container is an optimizer itself, but steps nothing: its optimizers do, and are checked then.
        optimizers.param_groups.clear()
        vars(optimizers)[STEPS_DONE] = 0
        vars(optimizers)["zero_grad"] = partial(_begin_step, optimizers, model_parts[0])
        vars(optimizers)["state_dict"] = partial(_full_state, optimizers, model_parts[0])
        vars(optimizers)["load_state_dict"] = partial(_load_full_state, optimizers, model_parts[0])


def _begin_step(optimizers: Any, module: SDPModule, set_to_none: bool = True) -> None:
    """Follows a schedule, and counts micro-batches from here, beside what ``zero_grad`` does."""
    vars(module)["_accumulation"].begin()
    _advance(optimizers, module)
    vars(optimizers)[STEPS_DONE] += 1
    type(optimizers).zero_grad(optimizers, set_to_none)


def _advance(optimizers: Any, module: SDPModule) -> None:
    """Gives a module with a schedule the plan of the next step. Collective where the plan changes."""
    if module.schedule is not None:
        module.advance(vars(optimizers)[STEPS_DONE], list(optimizers))


def _full_state(optimizers: Any, module: SDPModule) -> dict[str, Any]:
    """Returns the states of all optimizers as torchtitan lays them out, with full tensors. Collective."""
    flat: dict[str, Any] = {} if module.schedule is None else {STEPS_DONE: vars(optimizers)[STEPS_DONE]}
    for optimizer in optimizers:
        init_optim_state(optimizer)
        state = module.full_optimizer_state_dict(optimizer, cpu_offload=True)
        for name, values in state["state"].items():
            flat.update((f"state.{name}.{key}", value) for key, value in values.items())
        for group in state["param_groups"]:
            options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            flat.update(
                (f"param_groups.{name}.{key}", value) for name in group["params"] for key, value in options.items()
            )
    return flat


def _load_full_state(optimizers: Any, module: SDPModule, flat: Mapping[str, Any]) -> None:
    """Loads this worker's slices of what `_full_state` returned, by the plan of the step after it."""
    if STEPS_DONE in flat:
        vars(optimizers)[STEPS_DONE] = flat[STEPS_DONE]
        _advance(optimizers, module)
    for optimizer in optimizers:
        groups = []
        states: dict[str, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            names = group["param_names"]
            options = _below(flat, f"param_groups.{names[0]}.") if names else {}
            groups.append({**options, "params": names})
            states.update((name, _below(flat, f"state.{name}.")) for name in names)
        module.load_full_optimizer_state_dict(optimizer, {"state": states, "param_groups": groups})


def _below(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in flat.items() if key.startswith(prefix)}
