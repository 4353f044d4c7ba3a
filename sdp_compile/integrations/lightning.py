"""Lightning's Trainer: ``Trainer(strategy=SDPStrategy(policy=...))``."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.optim.optimizer import Optimizer
from typing_extensions import override

from sdp_compile.compiler import PolicyOrSchedule
from sdp_compile.errors import SDPError
from sdp_compile.integrations.compilation import Compilation, share_overflows
from sdp_compile.runtime.module.sdp_module import SDPModule


class SDPStrategy(DDPStrategy):
    """Trains this process's subnetwork of the network that a LightningModule holds, by default in ``self.model``.

    Processes, devices and data are those of Lightning's own ``DDPStrategy``. The network is compiled before
    ``configure_optimizers()``, and the compiled one takes its place in the LightningModule. Validation, testing and
    prediction run the full model. Checkpoints hold the full model under its original names. All of these are
    collective.
    """

    def __init__(
        self,
        policy: PolicyOrSchedule = "auto",
        example_inputs: Any = None,
        *,
        module: str = "model",
        evaluate_full_model: bool = True,
        compile_options: Mapping[str, Any] | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        """Notes what is compiled, and how.

        Args:
            policy: What is partitioned and how, as in `sdp_compile.compile`. A schedule that does not know its number
                of steps gets the Trainer's.
            example_inputs: Inputs of one training call of the network, as in `sdp_compile.compile`; by default the
                LightningModule's ``example_input_array``.
            module: The name of the network within the LightningModule.
            evaluate_full_model: Whether validation, testing and prediction assemble the full model on every process,
                rather than run this worker's subnetwork.
            compile_options: Further keyword arguments of `sdp_compile.compile`.
            process_group_backend: The backend of the process group; by default Lightning chooses by device.
            timeout: The time limit of the process group.

        Raises:
            SDPError: If ``compile_options`` has an unknown name.
        """
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self._compilation = Compilation(policy, example_inputs, compile_options)
        self._name, self._evaluates_full_model = module, evaluate_full_model
        self._compiled: SDPModule | None = None

    @property
    def compiled(self) -> SDPModule | None:
        """This worker's subnetwork; None before training."""
        return self._compiled

    @override
    def setup(self, trainer: Trainer) -> None:
        """Compiles the network before training, then sets up as Lightning does. Collective.

        Args:
            trainer: The Trainer.

        Raises:
            SDPError: If the network is not found or cannot be compiled, or something outside of it would be trained.
        """
        network = self._network()
        self._compiled = network if isinstance(network, SDPModule) else None
        if trainer.state.fn == TrainerFn.FITTING or self._compiled is not None:
            # Not DDPStrategy's, which would wrap the model, or send rank 0's slices to all.
            ParallelStrategy.setup(self, trainer)
        else:
            super().setup(trainer)

    @override
    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]  # DDPStrategy's is wrapped
        if self._compiled is None:
            self._check()
            share_overflows(self.precision_plugin)
            assert self.lightning_module is not None
            trainer = self.lightning_module.trainer
            self._compiled = self._compilation(
                self._network(), model, self.root_device, lambda: trainer.estimated_stepping_batches
            )
            self._replace(self._compiled)
        return model

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        """Makes the optimizers, without frozen parameters outside of the network.

        Args:
            trainer: The Trainer.
        """
        super().setup_optimizers(trainer)
        inside = set() if self._compiled is None else set(self._compiled.parameters())
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            kept = [parameter in inside or parameter.requires_grad for parameter in group["params"]]
            for key in {"params", "param_names"}.intersection(group):
                group[key] = [value for value, is_kept in zip(group[key], kept, strict=True) if is_kept]

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Gives a network with a schedule the plan of the next step. Collective.

        Args:
            batch: The batch.
            batch_idx: Its number.
        """
        assert self.lightning_module is not None
        self._advance(self.lightning_module.trainer.global_step)

    def _advance(self, step: int) -> None:
        if self._compiled is not None and self._compiled.schedule is not None:
            self._compiled.advance(step, self.optimizers)

    @override
    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Accumulates gradients without averaging them, within this context."""
        with nullcontext() if self._compiled is None else self._compiled.no_sync():
            yield

    # -- state --------------------------------------------------------------------------------------------------------

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns the state with the full network, on rank 0. Collective."""
        if self._compiled is None:
            return super().lightning_module_state_dict()
        with _outside_inference():
            full = self._compiled.full_state_dict(rank0_only=True, cpu_offload=True)
        if not self.is_global_zero:
            return {}
        with self._replaced(None):
            others = super().lightning_module_state_dict()
        return {**others, **{f"{self._name}.{key}": value for key, value in full.items()}}

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads a checkpoint's full model: all of it before compiling, this worker's slices afterwards.

        Args:
            checkpoint: The checkpoint.
            strict: Whether missing and unexpected keys are an error.
        """
        network = self._network()
        if not isinstance(network, SDPModule):
            super().load_model_state_dict(checkpoint, strict)
            return
        prefix, state = f"{self._name}.", checkpoint["state_dict"]
        network.load_full_state_dict(
            {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}, strict
        )
        others = {key: value for key, value in state.items() if not key.startswith(prefix)}
        with self._replaced(None):
            super().load_model_state_dict({**checkpoint, "state_dict": others}, strict)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the state that an optimizer would have for the full model, on rank 0. Collective.

        Args:
            optimizer: The optimizer.
        """
        if self._compiled is None:
            return super().optimizer_state(optimizer)
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        with _outside_inference():
            return self._compiled.full_optimizer_state_dict(optimizer, rank0_only=True, cpu_offload=True)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads this worker's slices of the optimizers' full states, by the plan of the checkpoint's step.

        Args:
            checkpoint: The checkpoint.
        """
        if self._compiled is None:
            super().load_optimizer_state_dict(checkpoint)
            return
        self._advance(checkpoint["global_step"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            self._compiled.load_full_optimizer_state_dict(optimizer, state)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluate_full_model(self) -> None:
        if self._compiled is not None and self._evaluates_full_model:
            with _outside_inference():
                self._replace(self._compiled.full_model())

    def _evaluation_ends(self) -> None:
        if self._compiled is not None and self._network() is not self._compiled:
            self._replace(self._compiled)

    on_validation_start = on_test_start = on_predict_start = _evaluate_full_model
    on_validation_end = on_test_end = on_predict_end = _evaluation_ends

    @override
    def teardown(self) -> None:
        """Lets Lightning tidy up, with the compiled network in place."""
        if self.lightning_module is not None:
            self._evaluation_ends()
        super().teardown()

    # -- the network --------------------------------------------------------------------------------------------------

    def _network(self) -> nn.Module:
        """Returns what the LightningModule holds under the name that was given."""
        assert self.lightning_module is not None
        modules: dict[str, nn.Module] = dict(self.lightning_module.named_modules())
        if self._name not in modules or not self._name:
            children = [name for name, _ in self.lightning_module.named_children()]
            raise SDPError(
                f"{type(self.lightning_module).__name__} has no module {self._name!r} for SDPStrategy to compile. Pass "
                f"SDPStrategy(module=...) with the name of its network; it holds: {', '.join(children) or 'none'}."
            )
        return modules[self._name]

    def _replace(self, network: nn.Module | None) -> None:
        assert self.lightning_module is not None
        parent, _, name = self._name.rpartition(".")
        setattr(self.lightning_module.get_submodule(parent), name, network)

    @contextmanager
    def _replaced(self, network: nn.Module | None) -> Iterator[None]:
        """Puts something in the place of the network, within this context."""
        before = self._network()
        self._replace(network)
        try:
            yield
        finally:
            self._replace(before)

    def _check(self) -> None:
        """Raises `SDPError` if the model asks for what the strategy cannot do."""
        assert self.lightning_module is not None
        kind = type(self.lightning_module).__name__
        if self._layer_sync is not None:
            raise SDPError(
                "Trainer(sync_batchnorm=True) does not work with SDPStrategy: each worker has channels of its own. "
                "Leave it out, and re-estimate the statistics with sdp.calibrate()."
            )
        for name, parameter in self.lightning_module.named_parameters(remove_duplicate=False):
            if parameter.requires_grad and not name.startswith(f"{self._name}."):
                raise SDPError(
                    f"{kind}.{name} would be trained, but SDPStrategy compiles self.{self._name} only, and nobody "
                    f"would average its gradients. Put it into self.{self._name}, name the module that holds "
                    "everything with SDPStrategy(module=...), or freeze it with requires_grad_(False)."
                )


@contextmanager
def _outside_inference() -> Iterator[None]:
    """Lets evaluation loops make tensors that training may use."""
    with torch.inference_mode(False), torch.no_grad():
        yield
