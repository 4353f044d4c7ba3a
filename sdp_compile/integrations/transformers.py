"""Hugging Face's Trainer with ``policy=``: ``SDPTrainer(model, args, policy="neuron", ...)``.

The Trainer keeps its usual two models: ``trainer.model`` is the original, and ``trainer.model_wrapped`` is what trains,
here this worker's subnetwork. While it trains, the original's parameters hold no values (they are on the meta device),
so nobody reads outdated ones and no worker stores the full model. Evaluating and saving fill them in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sdp_compile.capture.quiet import preserved_rng
from sdp_compile.compiler import PolicyOrSchedule, sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.integrations.recorder import CalledError, Recorder
from sdp_compile.integrations.scheduling import resolved, with_steps
from sdp_compile.policies import Schedule
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.state.statistics import calibrate, running_statistics

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""The Trainer's names of the files in a checkpoint."""


class SDPTrainer(Trainer):
    """A `transformers.Trainer` in which each process trains its subnetwork of the model. Run it under torchrun.

    Everything else is the Trainer's: arguments, callbacks, checkpoints, ``save_pretrained`` layout. Evaluation,
    prediction and saving use the full model. They are collective during training, so let every process call them.

    Attributes:
        compiled: This worker's subnetwork; None before training.
    """

    # The Trainer's own declarations include None, for times before these are set.
    model: Any
    optimizer: Any
    lr_scheduler: Any
    label_smoother: Any
    train_dataset: Any

    def __init__(
        self,
        *args: Any,
        policy: PolicyOrSchedule = "auto",
        masking: str | None = None,
        scheduled_rate: bool = False,
        example_inputs: Any = None,
        compile_options: Mapping[str, Any] | None = None,
        calibration_samples: int = 256,
        **kwargs: Any,
    ) -> None:
        """Takes the arguments of `transformers.Trainer`, and these:

        Args:
            args: The Trainer's positional arguments, the model first.
            policy: What is partitioned and how, as in `sdp_compile.compile`. A schedule that does not know its number
                of steps gets that of the training.
            masking: ``"forward"`` or ``"backward"``, in place of the policy's own.
            scheduled_rate: Whether the learning rate follows the schedule's, in place of ``lr_scheduler_type``.
            example_inputs: Inputs of one training call of the model. By default they are those that ``compute_loss``
                passes for the first rows of ``train_dataset``.
            compile_options: Further keyword arguments of `sdp_compile.compile`.
            calibration_samples: From how many training samples running statistics (BatchNorm) are re-estimated on the
                full model, before it is evaluated or saved.
            kwargs: The Trainer's keyword arguments.

        Raises:
            SDPError: If the model is compiled already, or the arguments do not fit together, or ask for another kind of
                parallelism.
        """
        self.compiled: SDPModule | None = None
        self._policy, self._scheduled_rate = resolved(policy, masking, scheduled_rate), scheduled_rate
        self._example_inputs, self._compile_options = example_inputs, dict(compile_options or {})
        self._calibration_samples = calibration_samples
        self._source: Any = None
        self._prepared: nn.Module | None = None
        self._known: tuple[int, ...] = ()
        model = kwargs.get("model", args[0] if args else None)
        if isinstance(model, SDPModule):
            raise SDPError(
                "SDPTrainer compiles the model itself. Pass the original model, and policy= (and compile_options=) "
                "instead of calling sdp.compile()."
            )
        super().__init__(*args, **kwargs)
        self._refuse()
        if isinstance(self._policy, Schedule):
            self.add_callback(_BeforeStep(self._advance))
        original = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # of PEFT
        if self.label_smoother is not None and original._get_name() in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            # The Trainer asks for shifted labels by the name of the class, which the compiled model does not have.
            self.label_smoother = partial(self.label_smoother, shift_labels=True)

    # -- training ---------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Returns the Trainer's optimizer, with the subnetwork's parameters in the groups of the original's.

        Args:
            model: The model whose parameters are optimized; by default the compiled one.
        """
        return super().create_optimizer(self._ready() if model is None else model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Returns the Trainer's learning rate scheduler, or that of the schedule with ``scheduled_rate``.

        Args:
            num_training_steps: The number of steps.
            optimizer: The optimizer; by default the Trainer's.
        """
        if not self._scheduled_rate or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        schedule = with_steps(self._policy, lambda: num_training_steps)
        assert isinstance(schedule, Schedule)
        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, schedule.rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _advance(self, step: int) -> None:
        """Gives the compiled model the plan of a step of its schedule. Collective."""
        if isinstance(self._policy, Schedule) and self.compiled is not None:
            self.compiled.advance(step, self._plain_optimizer())

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> Any:
        if not training:
            return self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        compiled = self._ready()
        self._release()
        if self._prepared is None:
            # As the Trainer does for models that need no DDP: autocast and torch.compile only.
            prepared: nn.Module = self.accelerator.prepare_model(compiled, device_placement=False, evaluation_mode=True)
            self._prepared = prepared
        return self._prepared

    def _finalize_training(self, *args: Any) -> Any:
        self._assemble()
        finalize: Callable[..., Any] = super()._finalize_training
        return finalize(*args)

    # -- the full model ---------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the Trainer's loop on the full model. Collective.

        Args:
            args: The positional arguments of `transformers.Trainer.evaluation_loop`.
            kwargs: Its keyword arguments.

        Returns:
            What the Trainer's loop returns.
        """
        with self._full_model():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the full model as ``save_pretrained`` does. Collective during training.

        Args:
            output_dir: The folder; by default the Trainer's.
        """
        with self._full_model():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.compiled is not None
        state = self.compiled.full_optimizer_state_dict(self._plain_optimizer(), cpu_offload=True)
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        names = [os.path.join(checkpoint or "", name) for name in (OPTIMIZER, SCHEDULER)]
        if checkpoint is None or not all(map(os.path.isfile, names)):
            return
        assert self.compiled is not None
        self._advance(self.state.global_step)
        state, schedule = (torch.load(name, map_location="cpu", weights_only=True) for name in names)
        self.compiled.load_full_optimizer_state_dict(self._plain_optimizer(), state)
        self.lr_scheduler.load_state_dict(schedule)

    # -- how the two models follow each other -----------------------------------------------------------------------

    def _ready(self) -> SDPModule:
        """Returns the compiled model with the values of the original, which may have loaded others since."""
        policy = with_steps(self._policy, lambda: self.state.max_steps or self.args.max_steps)
        if self.compiled is None or self._source is not self.model:
            # An earlier evaluation has put autocast into forward.
            original: Any = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            original._is_accelerate_prepared = False
            examples = self._examples()
            with self.accelerator.autocast():
                self.compiled = sdp_compile(original, policy, examples, **self._compile_options)
            self._prepared = None
            self._source, self._known = self.model, _versions(self.model)
        elif not self._is_released() and self._known != _versions(self.model):
            self.compiled.load_full_state_dict(self.model.state_dict())
        if isinstance(policy, Schedule):
            vars(self.compiled)["schedule"] = policy  # another training may have another number of steps
        return self.compiled

    def _is_released(self) -> bool:
        return any(parameter.is_meta for parameter in self.model.parameters())

    def _release(self) -> None:
        _replace_parameters(self.model, lambda parameter: parameter.to("meta"))

    def _assemble(self) -> None:
        """Gives the original the values of all workers. Collective."""
        if self.compiled is None or not self._is_released():
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The model has running statistics")
            state = self.compiled.full_state_dict()
        self._known = ()  # what the user does to it counts when training goes on
        _replace_parameters(self.model, lambda parameter: torch.empty_like(parameter, device=self.args.device))
        self.model.load_state_dict(state)
        plan = self.compiled.plan
        if plan.masking == "forward" and plan.workers > 1 and running_statistics(self.compiled.capture):
            size = self.args.per_device_train_batch_size
            batches = islice(self._batches(size), -(-self._calibration_samples // size))
            calibrate(self.model, map(self._call_of, batches))

    @contextmanager
    def _full_model(self) -> Iterator[None]:
        """Within this context the original has the values of all workers."""
        was_released = self._is_released()
        self._assemble()
        try:
            yield
        finally:
            if was_released:
                self._release()

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        plain: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return plain

    # -- what the model is called with ------------------------------------------------------------------------------

    def _examples(self) -> Any:
        if self._example_inputs is not None:
            return self._example_inputs
        inputs = self._call_of(next(self._batches(2)))
        if getattr(getattr(self.model, "config", None), "problem_type", "") is None:
            self._decide(inputs)
        return inputs

    def _decide(self, inputs: Mapping[str, Any]) -> None:
        """Runs the original once: from its first labels a classifier decides on its loss and notes it in its config."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        with torch.no_grad(), preserved_rng():
            self.model(**inputs)
        for module, training in modes.items():
            module.training = training

    def _batches(self, size: int) -> Iterator[Any]:
        """Yields batches of the first rows of the training data, the same on all workers."""
        rows = self.train_dataset
        if rows is None:
            raise SDPError("SDPTrainer found no train_dataset to compile the model with. Pass example_inputs=.")
        collate = self._get_collator_with_removed_columns(self.data_collator, description="Training")
        remaining = (rows[number] for number in range(len(rows))) if hasattr(rows, "__getitem__") else iter(rows)
        while True:
            with preserved_rng():
                batch = list(islice(remaining, size))
                if not batch:
                    return
                batch = collate(batch)
            yield batch

    def _call_of(self, batch: Any) -> dict[str, Any]:
        """Returns the arguments that ``compute_loss`` passes to the model for a batch, by name."""
        inputs = self._prepare_inputs(batch)
        items = self._get_num_items_in_batch([inputs], self.args.device)
        try:
            self.compute_loss(Recorder(self.model), inputs, num_items_in_batch=items)
        except CalledError as call:
            return call.arguments
        raise SDPError(
            "compute_loss() does not call the model that it is given, so SDPTrainer does not know its inputs. Pass "
            "example_inputs= with those of one training call."
        )

    def _refuse(self) -> None:
        """Raises `SDPError` for arguments with which the workers would do something else than their own subnetwork."""
        parallel = [
            name
            for name, is_used in (
                ("fsdp", self.is_fsdp_enabled),
                ("deepspeed", self.is_deepspeed_enabled),
                ("parallelism_config", getattr(self.accelerator, "parallelism_config", None) is not None),
            )
            if is_used
        ]
        if parallel:
            raise SDPError(f"SDPTrainer partitions the model itself. Leave out {parallel[0]} in TrainingArguments.")
        if self.args.auto_find_batch_size:
            raise SDPError(
                "auto_find_batch_size restarts training on the worker that ran out of memory alone. Set "
                "per_device_train_batch_size to what fits."
            )
        if self.optimizer is not None:
            raise SDPError(
                "optimizers= holds an optimizer of the original model's parameters, which would train nothing. Pass "
                "optimizer_cls_and_kwargs=(class, options), or override create_optimizer()."
            )


class _BeforeStep(TrainerCallback):
    """Does something before the first micro-batch of each step."""

    def __init__(self, action: Callable[[int], None]) -> None:
        self._action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Passes on the number of steps done."""
        self._action(state.global_step)


def _versions(model: nn.Module) -> tuple[int, ...]:
    """Returns how often each tensor was written: ranks may start with different values, of which rank 0's count."""
    return tuple(tensor._version for tensor in (*model.parameters(), *model.buffers()))


def _replace_parameters(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces the parameters of a model; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    held = list(model.parameters())  # keeps the identities in use
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(make(parameter.detach()), parameter.requires_grad)
                module._parameters[key] = made[id(parameter)]
    del held
