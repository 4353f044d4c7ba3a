"""Hugging Face's Accelerator for compiled models: ``SDPAccelerator().prepare(sdp.compile(...), optimizer, loader)``.

Compiled models are prepared without DistributedDataParallel, and states are those of the full model, so they can be
loaded on another number of workers. Other models are prepared as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import MODEL_NAME, SAFE_MODEL_NAME
from safetensors.torch import load_file, load_model
from torch import nn

from sdp_compile.errors import SDPError
from sdp_compile.integrations.scheduling import StepCounts
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.subnetwork import Subnetwork, unwrapped


class SDPAccelerator(Accelerator):  # type: ignore[misc]  # accelerate has no types
    """An `accelerate.Accelerator` that takes models from `sdp_compile.compile`, with the same arguments.

    ``accumulate``, ``no_sync``, ``backward`` and ``clip_grad_norm_`` work as they are. ``get_state_dict``,
    ``save_model``, ``save_state`` and the ``state_dict()`` of a prepared optimizer give the full model's state. They
    are collective: call them on every process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of `accelerate.Accelerator`.

        Args:
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        super().__init__(*args, **kwargs)
        self._steps = StepCounts(self._model_of)
        self.register_load_state_pre_hook(self._load_models)

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        """Returns a model for training; a compiled one gets mixed precision and `torch.compile` only, no DDP.

        Args:
            model: A model from `sdp_compile.compile`, or any other.
            device_placement: Whether it is moved to this process's device; by default as the Accelerator says.
            evaluation_mode: Whether a model is not trained, so that others are not wrapped either.
        """
        stays_alone = evaluation_mode or compiled_in(model) is not None
        prepared: nn.Module = super().prepare_model(model, device_placement, evaluation_mode=stays_alone)
        return prepared

    def prepare_optimizer(
        self, optimizer: torch.optim.Optimizer, device_placement: bool | None = None
    ) -> torch.optim.Optimizer:
        """Returns an optimizer for training, whose state is that of the full model if it steps a compiled one.

        Args:
            optimizer: An optimizer, built from the compiled model's parameters.
            device_placement: Whether its state is moved to this process's device.
        """
        if getattr(optimizer, "_is_accelerate_prepared", False):
            known: torch.optim.Optimizer = super().prepare_optimizer(optimizer, device_placement)
            return known
        place = self.device_placement if device_placement is None else device_placement
        self._steps.add(optimizer)
        prepared = FullStateOptimizer(self, optimizer, place)
        self._optimizers.append(prepared)
        return prepared

    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> Any:
        """Returns the full model's state, on every process. Collective for compiled models.

        Args:
            model: A prepared model.
            unwrap: Whether wrappers of other models are removed first.
        """
        compiled = compiled_in(model)
        if compiled is None:
            return super().get_state_dict(model, unwrap)
        return compiled.full_state_dict(cpu_offload=True)

    def _model_of(self, optimizer: torch.optim.Optimizer) -> SDPModule | None:
        """Returns the compiled model that an optimizer steps."""
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for model in self._models:
            compiled = compiled_in(model)
            if compiled is not None and any(id(parameter) in stepped for parameter in compiled.parameters()):
                return compiled
        return None

    def _load_models(self, models: list[nn.Module], folder: str) -> None:
        """Loads all models of a state if one of them is compiled, which cannot load the full tensors by itself."""
        if all(compiled_in(model) is None for model in models):
            return
        for number, model in enumerate(models):
            ending, compiled = f"_{number}" if number else "", compiled_in(model)
            path = Path(folder, f"{SAFE_MODEL_NAME}{ending}.safetensors")
            is_safe = path.exists()
            if compiled is None and is_safe:
                load_model(model, path)
                continue
            path = path if is_safe else Path(folder, f"{MODEL_NAME}{ending}.bin")
            state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
            if compiled is None:
                model.load_state_dict(state)
            else:
                compiled.load_full_state_dict(state)
        models.clear()  # the Accelerator loads those that are left


class FullStateOptimizer(AcceleratedOptimizer):  # type: ignore[misc]  # accelerate has no types
    """A prepared optimizer with the full model's state, if it steps a compiled model."""

    def __init__(self, accelerator: SDPAccelerator, optimizer: torch.optim.Optimizer, device_placement: bool) -> None:
        """Prepares an optimizer.

        Args:
            accelerator: The accelerator, which knows the models.
            optimizer: The optimizer.
            device_placement: Whether its state is moved to the accelerator's device.
        """
        self._accelerator = accelerator
        super().__init__(optimizer, device_placement=device_placement, scaler=accelerator.scaler)

    def step(self, closure: Any = None) -> None:
        """Steps, unless gradients are accumulated. Then a model with a schedule gets the plan of the next step.

        Args:
            closure: What the optimizer's ``step()`` is called with.
        """
        super().step(closure)
        if self.gradient_state.sync_gradients:
            self._accelerator._steps.count(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as it would be for the original model, with parameter names. Collective."""
        compiled = self._accelerator._model_of(self.optimizer)
        if compiled is not None:
            full = compiled.full_optimizer_state_dict(self.optimizer, cpu_offload=True)
            return self._accelerator._steps.saved(self.optimizer, full)
        state: dict[str, Any] = super().state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads this worker's part of a full state. Collective for a model with a schedule, which gets its plan.

        Args:
            state_dict: What `state_dict` returned, the same on all ranks.
        """
        compiled = self._accelerator._model_of(self.optimizer)
        if compiled is None:
            super().load_state_dict(state_dict)
        else:
            self._accelerator._steps.restore(self.optimizer, state_dict)
            compiled.load_full_optimizer_state_dict(self.optimizer, state_dict)


def compiled_in(model: nn.Module) -> SDPModule | None:
    """Returns the compiled model that ``model`` is or wraps; None for other models.

    Args:
        model: Any module.
    """
    try:
        found: Subnetwork = unwrapped(model)
    except SDPError:
        return None
    assert isinstance(found, SDPModule)
    return found
