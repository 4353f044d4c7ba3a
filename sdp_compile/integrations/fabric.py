"""Lightning Fabric: ``Fabric(strategy=SDPStrategy(policy=...))``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.strategy import _BackwardSyncControl
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.optim.optimizer import Optimizer
from typing_extensions import override

from sdp_compile.compiler import PolicyOrSchedule
from sdp_compile.integrations.compilation import Compilation, share_overflows
from sdp_compile.integrations.in_place import compiled_of, put_in_place
from sdp_compile.integrations.scheduling import StepCounts
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.full_state import sliced_optimizer_state
from sdp_compile.runtime.optimizer.moving import move_to_compiled
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer


class SDPStrategy(DDPStrategy):
    """Trains this process's subnetwork of each module that ``fabric.setup()`` is given.

    Processes, devices and data are those of Fabric's own ``DDPStrategy``. ``setup`` changes the module and the
    optimizer in place: the module keeps its class and methods, and holds this worker's slices. Saving and loading use
    the full model under its original names, and are collective.
    """

    def __init__(
        self,
        policy: PolicyOrSchedule = "auto",
        example_inputs: Any = None,
        *,
        compile_options: Mapping[str, Any] | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        """Notes how modules are compiled.

        Args:
            policy: What is partitioned and how, as in `sdp_compile.compile`. A schedule must know its number of steps.
            example_inputs: Inputs of one training call, as in `sdp_compile.compile`; by default each module's
                ``example_input_array``.
            compile_options: Further keyword arguments of `sdp_compile.compile`.
            process_group_backend: The backend of the process group; by default Fabric chooses by device.
            timeout: The time limit of the process group.

        Raises:
            SDPError: If ``compile_options`` has an unknown name.
        """
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self._compilation = Compilation(policy, example_inputs, compile_options)
        self._set_up: list[nn.Module] = []
        self._steps = StepCounts(self._module_of)
        self._backward_sync_control = _NoSync()

    @override
    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]  # DDPStrategy's is wrapped
        """Compiles a module in place, unless it is compiled or trains nothing. Collective.

        Args:
            module: The module that Fabric sets up.

        Returns:
            The same module.
        """
        if compiled_of(module) is None and any(parameter.requires_grad for parameter in module.parameters()):
            share_overflows(self.precision)
            put_in_place(module, self._compilation(module, module, self.root_device))
        if compiled_of(module) is not None:
            self._set_up.append(module)
        return module

    @override
    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Moves an optimizer to the parameters of the compiled modules.

        Args:
            optimizer: An optimizer that was built before or after its module was set up.

        Returns:
            The same optimizer.
        """
        move_to_compiled(optimizer)
        self._steps.add(optimizer)
        if self._module_of(optimizer) is not None and not isinstance(optimizer, ShardedOptimizer):
            optimizer.register_load_state_dict_pre_hook(self._slice)
        return optimizer

    @override
    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        """Steps an optimizer. Then a model with a schedule gets the plan of the next step, which is collective.

        Args:
            optimizer: An optimizer that was set up.
            kwargs: What its ``step()`` is called with.

        Returns:
            What it returns.
        """
        result = super().optimizer_step(optimizer, **kwargs)
        self._steps.count(optimizer)
        return result

    @override
    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Returns the full model's state on rank 0, and nothing elsewhere. Collective.

        Args:
            module: A module that was set up.
        """
        compiled = compiled_of(module)
        if compiled is None:
            return super().get_module_state_dict(module)
        return compiled.full_state_dict(rank0_only=True, cpu_offload=True)

    @override
    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Loads this worker's slices of a full model's state.

        Args:
            module: A module that was set up.
            state_dict: The original model's state.
            strict: Whether missing and unexpected keys are an error.
        """
        compiled = compiled_of(module)
        if compiled is None:
            super().load_module_state_dict(module, state_dict, strict)
        else:
            compiled.load_full_state_dict(state_dict, strict)

    @override
    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Returns the state that the optimizer would have for the full model, on rank 0. Collective.

        Args:
            optimizer: An optimizer that was set up.
        """
        module = self._module_of(optimizer)
        if module is None:
            return super().get_optimizer_state(optimizer)
        state = module.full_optimizer_state_dict(optimizer, rank0_only=True, cpu_offload=True)
        return self._steps.saved(optimizer, state)

    @override
    def load_checkpoint(
        self, path: Any, state: Any = None, strict: bool = True, weights_only: bool | None = None
    ) -> Any:
        """Loads a checkpoint of full models and optimizers.

        Args:
            path: The file.
            state: What is restored, as for Fabric's own strategies.
            strict: Whether a missing key is an error.
            weights_only: What `torch.load` may unpickle.

        Returns:
            What was not restored.
        """
        if not isinstance(state, dict):
            return super().load_checkpoint(path, self._loadable(state), strict, weights_only)
        loadable = {name: self._loadable(value) for name, value in state.items()}
        rest = super().load_checkpoint(path, loadable, strict, weights_only)
        state.update((name, value) for name, value in loadable.items() if not isinstance(value, _Sharded))
        return rest

    def _loadable(self, value: Any) -> Any:
        module = self._module_of(value) if isinstance(value, ShardedOptimizer) else None
        return value if module is None else _Sharded(module, value, self._steps)

    def _module_of(self, optimizer: Optimizer) -> SDPModule | None:
        """Returns the compiled module whose parameters an optimizer steps."""
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for module in self._set_up:
            compiled = compiled_of(module)
            if compiled is not None and not held.isdisjoint(compiled.parameters()):
                return compiled
        return None

    def _slice(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        """Cuts a full state that an optimizer is about to load; leaves this worker's own as it is."""
        self._steps.restore(optimizer, state)
        module = self._module_of(optimizer)
        if module is None or _fits(optimizer, state):
            return None
        return sliced_optimizer_state(module, optimizer, state)


class _NoSync(_BackwardSyncControl):
    @override
    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        compiled = compiled_of(module)
        return compiled.no_sync() if enabled and compiled is not None else nullcontext()


class _Sharded:
    """A sharded optimizer that loads full states; Fabric finds the two methods of a stateful object."""

    def __init__(self, module: SDPModule, optimizer: ShardedOptimizer, steps: StepCounts) -> None:
        self._module, self._optimizer, self._steps = module, optimizer, steps

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps.restore(self._optimizer, state)
        self._module.load_full_optimizer_state_dict(self._optimizer, state)


def _fits(optimizer: Optimizer, state: Mapping[str, Any]) -> bool:
    """Whether a state has the groups and shapes of an optimizer's parameters, by position."""
    saved = [key for group in state["param_groups"] for key in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return (
        not any(isinstance(key, str) for key in saved)
        and len(saved) == len(parameters)
        and all(
            value.shape == parameter.shape
            for key, parameter in zip(saved, parameters, strict=True)
            for value in state["state"].get(key, {}).values()
            if isinstance(value, Tensor) and value.numel() != 1
        )
    )
