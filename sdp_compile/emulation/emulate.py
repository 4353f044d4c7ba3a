"""``sdp.emulate(model, policy, workers=N)``: what N workers would compute, one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.capture import Methods, capture
from sdp_compile.compiler import (
    PolicyLike,
    PolicyOrSchedule,
    Reduction,
    check_phases,
    checked_reduction,
    checked_workers,
    resolve_phases,
)
from sdp_compile.emulation import parts
from sdp_compile.emulation.averaging import Means
from sdp_compile.emulation.buffers import OwnBuffers
from sdp_compile.emulation.station import Scratch, Station
from sdp_compile.errors import PlanError, SDPError
from sdp_compile.lowering import lower
from sdp_compile.passes import Passes, resolve_pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.moves import check_same_model
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Schedule, resolve_policy
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.guard import follow_schedule
from sdp_compile.runtime.probing.elementwise import check_elementwise
from sdp_compile.runtime.tensors import local_tensors
from sdp_compile.structure.analysis import Analysis, analyse

LossFunction = Callable[[SDPModule, Any], Tensor]
"""Takes a worker's subnetwork and its batch, and returns the loss, a scalar with a gradient."""

_REMEMBERED = 16  # plans whose graphs are kept


def emulate(
    model: nn.Module,
    policy: PolicyOrSchedule = "auto",
    example_inputs: Any = None,
    *,
    workers: int,
    methods: Methods = (),
    passes: Passes = None,
    reduction: Reduction = "mean",
    seed: int = 0,
) -> Emulation:
    """Returns ``model`` as ``workers`` workers would train it, emulated in this process and on one device.

    Gradients, running statistics, clipping, optimizer steps and changes of plan are those of a run in a process group,
    up to rounding. The workers take turns on one copy of the full parameters, so the memory is that of the full model
    with its optimizer, and of one subnetwork's activations; a step takes about as long as one of the dense model on the
    batches of all workers, times the coverage.

    Args:
        model: Any module that torch.export captures. It is left as it is.
        policy: What is partitioned and how: a `Policy`, its name, the path of its TOML file, or its fields; or a
            `Schedule`, in the same forms, which `Emulation.advance` follows.
        example_inputs: A tuple (positional arguments), a mapping (keyword arguments) or one tensor.
        workers: Number of workers N.
        methods: Methods that are compiled beside forward; see `sdp_compile.sdp_compile`.
        passes: The passes that rewrite the graphs, as `sdp_compile.sdp_compile` takes them.
        reduction: How the gradients of the P owners of a unit make up its gradient; see `sdp_compile.sdp_compile`.
        seed: Worker i's random numbers are those after ``torch.manual_seed(seed + i)``, and likewise Python's and
            NumPy's.

    Returns:
        A module with the original's parameters, for any element-wise optimizer; see `Emulation.step`.

    Raises:
        SDPError: If the model, the policy or the passes do not fit. The error says what is wrong where, and what to do.

    Source: "Model Parallelism With Subnetwork Data Parallelism", arXiv 2507.09029, sections 3 and 4.
    """
    if not isinstance(model, nn.Module) or isinstance(model, SDPModule):
        raise PlanError(f"sdp.emulate() takes the original torch.nn.Module, got {type(model).__name__}.")
    if any(tensor.is_meta for tensor in local_tensors(model).values()):
        raise SDPError("sdp.emulate() computes, but the model is on the meta device. Give it values first.")
    workers, reduction = checked_workers(workers), checked_reduction(reduction)
    chosen, schedule = resolve_phases(policy)
    analysis = analyse(capture(model, example_inputs, methods))
    check_phases(analysis, schedule, workers)
    result = Emulation(model, analysis, make_plan(analysis, chosen, workers), passes, reduction, seed)
    result.schedule = schedule
    return result


class Emulation(nn.Module):
    """The full model, trained as the workers of a plan would train it. See `emulate`.

    A call computes with the full model, as `SDPModule.full_model` would. Running statistics and other buffers that
    forward changes are each worker's own; in ``state_dict()`` and in calls they are merged over their owners. Call
    `sdp_compile.calibrate` before evaluating a model that has some.

    Attributes:
        plan: Who owns what.
        schedule: What `advance` follows; None if there is only one policy.
    """

    plan: Plan
    schedule: Schedule | None = None
    _original: nn.Module

    def __init__(
        self, model: nn.Module, analysis: Analysis, plan: Plan, passes: Passes, reduction: Reduction, seed: int
    ) -> None:
        """Copies a model and lowers it for the workers of a plan; see `emulate`."""
        super().__init__()
        self._original, self.training = parts.copy_of(model), model.training
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[registry] = vars(self._original)[registry]  # so that all names are the original's
        self._analysis, self._passes, self._reduction = analysis, passes, reduction
        self._places = parts.places_of(self._original)
        self._scratch: Scratch = {}
        self._known: dict[str, tuple[Station, ...]] = {}
        self._own = OwnBuffers(analysis.capture)
        self._random = parts.RandomNumbers(plan.workers, seed)
        self._is_merged = True
        self._follow(plan)
        follow_schedule(self, None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        follow_schedule(self, self.schedule)

    @property
    def workers(self) -> int:
        """The number of workers."""
        return self.plan.workers

    # -- training ----------------------------------------------------------------------------------------------------

    def step(
        self,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        optimizer: Optimizer,
        *,
        max_norm: float | None = None,
        tokens: Sequence[float] | None = None,
    ) -> Tensor:
        """Trains one step: clears the gradients, runs `backward`, clips if asked to, and steps the optimizer.

        Args:
            batches: One batch for each worker, anything that ``loss_fn`` takes.
            loss_fn: Called as ``loss_fn(model, batch)`` with each worker's subnetwork and batch. It returns the loss.
            optimizer: An element-wise optimizer of this module's parameters.
            max_norm: Upper bound of the norm of the full gradient; None does not clip.
            tokens: For ``reduction="tokens"``, the number of tokens of each worker's batch.

        Returns:
            The losses of all workers, shape (workers,).

        Raises:
            SDPError: If a batch is missing, a loss is not a scalar, or the optimizer is not element-wise.
        """
        check_elementwise(optimizer, next((one.device for one in self.parameters()), None))
        optimizer.zero_grad()
        losses = self.backward(batches, loss_fn, tokens=tokens)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), max_norm)
        optimizer.step()
        return losses

    def backward(
        self, batches: Sequence[Any], loss_fn: LossFunction, *, tokens: Sequence[float] | None = None
    ) -> Tensor:
        """Adds the mean over the owners of each element's gradient to ``.grad`` of the full parameters.

        Several calls accumulate, as micro-batches under `SDPModule.no_sync` do.

        Args:
            batches: One batch for each worker.
            loss_fn: Called as ``loss_fn(model, batch)`` with each worker's subnetwork and batch. It returns the loss.
            tokens: For ``reduction="tokens"``, the number of tokens of each worker's batch.

        Returns:
            The losses of all workers, shape (workers,).

        Raises:
            SDPError: If a batch is missing, or a loss is not a scalar.
        """
        weights = parts.checked_weights(self.workers, self._reduction, batches, tokens)
        parts.check_loss_function(loss_fn)
        means, losses = self._means, [torch.empty(0)] * self.workers
        means.clear()
        full = self._tensors()
        parameters = {name: one for name, one in full.items() if isinstance(one, nn.Parameter)}
        for station in self._stations:
            if station.module.training != self.training:
                station.module.train(self.training)
            for worker in station.workers:
                station.occupy(full, self._own.of.get(worker, {}), self._scratch)
                with self._random.of(worker), torch.enable_grad():
                    loss = parts.checked_loss(loss_fn(station.module, batches[worker]))
                    loss.backward()
                losses[worker] = loss.detach()
                for name, region, gradient in station.gradients() if weights[worker] else ():
                    means.add(name, region, gradient, parameters[name], weights[worker])
            station.leave()
        means.finish(parameters, weights)
        self._is_merged = not self._own
        return torch.stack(losses)

    def advance(self, step: int) -> bool:
        """Does what the schedule asks for before a step, as `SDPModule.advance` does. Optimizers keep their states.

        Args:
            step: The number of steps done.

        Returns:
            Whether the plan has changed.

        Raises:
            SDPError: If there is no schedule.
        """
        if self.schedule is None:
            raise SDPError("advance() follows a schedule. Pass a Schedule to sdp.emulate(), or call replan().")
        policy = self.schedule.policy_at(step)
        if self.plan.policy == policy.describe():
            return False
        self.replan(policy)
        return True

    def replan(self, policy: PolicyLike | Plan) -> None:
        """Changes to another plan, as `SDPModule.replan` does. Optimizers keep their states.

        Args:
            policy: What is partitioned and how, as `emulate` takes it, or a plan of this model.

        Raises:
            SDPError: If the policy or plan does not fit the model.
        """
        if isinstance(policy, Plan):
            check_same_model(self.plan, policy)
            plan = policy
        else:
            plan = self.plan_of(policy)
        self._merge()
        self._follow(plan)

    def plan_of(self, policy: PolicyLike) -> Plan:
        """Returns the plan that `replan` would change to.

        Args:
            policy: What is partitioned and how, as `emulate` takes it.

        Raises:
            SDPError: If the policy does not fit the model.
        """
        return make_plan(self._analysis, resolve_policy(policy), self.workers)

    # -- the full model ----------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes with the full model, in its own code."""
        self._merge()
        return self._original(*args, **kwargs)

    def full_model(self) -> nn.Module:
        """Returns a new copy of the original model with the current values, in this module's modes."""
        self._merge()
        return parts.copy_of(self._original)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the full model's state, with merged statistics; it loads into the original model.

        Args:
            args: The positional arguments of `torch.nn.Module.state_dict`.
            kwargs: Its keyword arguments.
        """
        self._merge()
        return self._original.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads a state of the full model; all workers get its buffers.

        Args:
            args: The positional arguments of `torch.nn.Module.load_state_dict`.
            kwargs: Its keyword arguments.
        """
        result = self._original.load_state_dict(*args, **kwargs)
        self._own = OwnBuffers(self._analysis.capture)
        self._own.follow(self.plan, self._stations, self._tensors())
        self._is_merged = True
        return result

    def train(self, mode: bool = True) -> Emulation:
        """Sets the mode of the full model and of the subnetworks."""
        self._original.train(mode)
        self.training = mode
        return self

    # -- inside ------------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute of this object, also where the model has a part of the same name."""
        vars(self)[name] = value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Emulation:
        self._original._apply(fn, recurse)
        self._own.apply(fn)
        self._scratch.clear()
        for station in dict.fromkeys(one for stations in self._known.values() for one in stations):
            station.module._apply(fn)
            station.find_tensors()
        return self

    def _follow(self, plan: Plan) -> None:
        """Lowers the model for the workers of a plan, or takes the graphs of an earlier use."""
        if plan.digest not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[plan.digest] = self._lowered(plan)
        self.plan, self._stations = plan, self._known[plan.digest]
        self._means = Means(plan, self._reduction == "sum")
        self._own.follow(plan, self._stations, self._tensors())

    def _lowered(self, plan: Plan) -> tuple[Station, ...]:
        pipeline = parts.without_communication(resolve_pipeline(self._passes, "sliced", plan.masking))
        full, stations = self._tensors(), list[Station]()
        for workers in plan.worker_classes():
            stations.append(Station(lower(self._analysis, plan, workers[0], pipeline), workers, full))
            stations[-1].occupy(full, {}, self._scratch)  # only one at a time has slices of its own
        return tuple(stations)

    def _merge(self) -> None:
        if not self._is_merged:
            self._own.merge(self._tensors())
            self._is_merged = True

    def _tensors(self) -> dict[str, Tensor]:
        """Returns the full model's tensors by canonical name."""
        return {name: registry[key] for name, (registry, key) in self._places.items()}
