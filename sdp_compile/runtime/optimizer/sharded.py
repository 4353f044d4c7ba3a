"""An optimizer whose state is split among the owners of each unit: ZeRO within every owner group."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.runtime.gradients.by_levels import ByLevels
from sdp_compile.runtime.gradients.engine import GradientEngine
from sdp_compile.runtime.gradients.reduce_scatter import ReduceScatter
from sdp_compile.runtime.gradients.shard_layout import ShardLayout, parameters_of
from sdp_compile.runtime.optimizer.guard import install_optimizer_guard
from sdp_compile.runtime.optimizer.param_groups import keep_dtypes
from sdp_compile.runtime.optimizer.shard_values import bound, publish
from sdp_compile.runtime.owners import rates
from sdp_compile.runtime.probing.elementwise import check_elementwise, check_name
from sdp_compile.runtime.sharding.shards import Shard
from sdp_compile.runtime.state.full_state import device_of, enter
from sdp_compile.runtime.subnetwork import unwrapped

_NOT_OPTIONS = ("params", "param_names")


class ShardedOptimizer(Optimizer):
    """Splits the state of an element-wise optimizer among the owners of each unit. Collective.

    Each of P owners keeps 1/P of the state. ``ShardedOptimizer(model, torch.optim.AdamW, lr=1e-3)`` is used like
    ``torch.optim.AdamW(model.parameters(), lr=1e-3)``, with parameter groups and learning rate schedulers.

    While it exists, backward averages only each owner's chunk of the gradients, ``.grad`` of these parameters is a
    `ShardedGradient` without values, and ``step`` sends the new values to all owners. Together they send as many bytes
    as an all-reduce. After it is deleted, the model has ordinary gradients again.

    Args:
        model: An `SDPModule`, or the wrapper of one that ``torch.compile`` returns.
        optimizer: The class of an element-wise optimizer, such as ``torch.optim.AdamW``.
        params: Parameters or parameter groups; by default all parameters of the model.
        defaults: The options of ``optimizer``.

    Raises:
        SDPError: If ``model`` is not compiled or has a ShardedOptimizer already, ``optimizer`` is not element-wise, or
            ``params`` holds a parameter of another model.
        DistributedError: If there is no process group, or the ranks call different things.

    Source: Rajbhandari et al., ZeRO (arXiv 1910.02054), stage 2.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: type[Optimizer],
        params: Iterable[Any] | None = None,
        **defaults: Any,
    ) -> None:
        self.module = module = unwrapped(model)
        peers, _ = enter(module, "sdp.ShardedOptimizer()", str(optimizer), lambda: self._check(optimizer))
        parameters = parameters_of(module, module.plan)
        if peers is None:
            self._layout = ShardLayout(parameters, module.holdings, ())
        else:
            self._layout = ShardLayout(parameters, module.holdings, peers.engine.slots, peers.route.chunk_order)
        self.reduction: ReduceScatter | None = None
        """How the gradients are averaged meanwhile; None without peers."""
        known = optimizer([{"params": []}], **defaults).defaults
        super().__init__(module.parameters() if params is None else params, known)
        groups = [{**_options(group), "params": self._shard_parameters(group)} for group in self.param_groups]
        self._inner = optimizer(groups, **defaults)
        for one in (self, self._inner):  # `step` multiplies the rates of shards
            rates.leave_alone(one)
        check_elementwise(self._inner, device_of(module), flat=True)
        self.state = self._inner.state
        install_optimizer_guard()
        self._ending: weakref.finalize[Any, Any] | None = None
        self._connect()

    def _connect(self) -> None:
        """Lets backward average gradients to shards, as long as this optimizer exists."""
        if self._ending is not None:
            self._ending.detach()
        if (peers := self.module.peers) is not None:
            before = peers.engine.reduction
            self.reduction = reduction = ReduceScatter(peers.engine, before, self.module, self._layout, self)
            peers.engine.reduction = reduction
            self._ending = weakref.finalize(self, _end, reduction, before, weakref.ref(peers.engine))
            self._ending.atexit = False

    def follow_plan(self, layout: ShardLayout, states: Mapping[Tensor, dict[str, Any]]) -> None:
        """Steps other shards from now on, after the model got another plan.

        Args:
            layout: The shards of the parameters that the groups of this optimizer hold now.
            states: The states of these shards' parameters.
        """
        self._layout = layout
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner["params"] = self._shard_parameters(group)
        self._inner.state.clear()
        self._inner.state.update(states)
        self._follow_options()
        self._connect()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group.

        Args:
            param_group: The parameters under ``params``, and options that differ from the defaults.
        """
        super().add_param_group(param_group)
        if hasattr(self, "_inner"):  # the constructor wraps all of its groups at once
            group = self.param_groups[-1]
            self._inner.add_param_group({**_options(group), "params": self._shard_parameters(group)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps the elements whose state this worker holds, and sends the new values to all owners.

        Collective.

        Args:
            closure: A function that computes the loss and its gradients again, called before the step.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            SDPError: If the model's parameters were replaced, or a gradient was not reduced to shards.
            DistributedError: If gradients were accumulated under ``no_sync()`` and not synchronised.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = parameters_of(self.module, self.module.plan)
        self._check_parameters(parameters)
        self._follow_options()
        check_elementwise(self._inner, device_of(self.module), flat=True)
        factors, shards = rates.factors(self.module), self._layout.shards
        known = {shard.parameter: factors[name] for name in factors for shard in shards.get(name, ())}
        with bound(self._layout, parameters):
            with rates.scaled(self._inner, known) as inner:
                inner.step()
            self._adopt()  # some optimizers keep state in their groups
            publish(self._layout, parameters, self.reduction)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of this worker's own shards, for the same worker of the same plan.

        For a state that fits any number of workers, use ``model.full_optimizer_state_dict(optimizer)``.
        """
        self._follow_options()
        return {**self._inner.state_dict(), "shards": self._identity()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the state of this worker's own shards.

        Args:
            state_dict: What ``state_dict`` returned on the same worker of the same plan, with the same groups.

        Raises:
            SDPError: If it comes from another worker, plan, bucket size or grouping of parameters.
        """
        if state_dict.get("shards") != self._identity():
            raise SDPError(
                f"The state does not belong to worker {self.module.rank} with this plan, bucket size and grouping of "
                "parameters. Save model.full_optimizer_state_dict(optimizer) instead, and load it with "
                "model.load_full_optimizer_state_dict()."
            )
        self._inner.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._adopt()

    def load_slices(
        self, options: list[dict[str, Any]], states: Mapping[str, Mapping[str, Any]], keeps_dtypes: bool = False
    ) -> None:
        """Loads the options of all groups, and this worker's shards of the states.

        Args:
            options: The options of each group.
            states: The states by parameter, as slices of this worker.
            keeps_dtypes: Whether states keep their dtypes; by default they get those of their parameters.
        """
        groups: list[dict[str, Any]] = []
        loaded: dict[int, dict[str, Any]] = {}
        for group, new in zip(self.param_groups, options, strict=True):
            first = sum(len(known["params"]) for known in groups)
            shards = self._shards(group)
            groups.append({**_options(new), "params": list(range(first, first + len(shards)))})
            for number, shard in enumerate(shards, first):
                if shard.name in states:
                    shape = self.module.get_parameter(shard.name).shape
                    loaded[number] = {key: _part(shard, value, shape) for key, value in states[shard.name].items()}
        self._inner.load_state_dict({"state": loaded, "param_groups": groups})
        if keeps_dtypes:
            keep_dtypes(self._inner, loaded)
        self._adopt()

    def __getstate__(self) -> dict[str, Any]:
        raise SDPError(
            "A ShardedOptimizer cannot be pickled or copied, because it is tied to its model. Save its state_dict() or "
            "model.full_optimizer_state_dict(optimizer)."
        )

    @property
    def layout(self) -> ShardLayout:
        """Which elements this worker steps."""
        return self._layout

    @property
    def wrapped(self) -> Optimizer:
        """The optimizer that steps this worker's shards."""
        return self._inner

    def _check(self, optimizer: type[Optimizer]) -> None:
        if not isinstance(optimizer, type):
            raise SDPError(
                "sdp.ShardedOptimizer takes the class of an optimizer and its options, as in "
                "sdp.ShardedOptimizer(model, torch.optim.AdamW, lr=1e-3), got an object of type "
                f"{type(optimizer).__name__}."
            )
        check_name(optimizer)
        peers = self.module.peers
        if peers is not None and isinstance(peers.engine.reduction, ReduceScatter):
            raise SDPError(
                "The model has a ShardedOptimizer already, and it can have only one at a time. Delete it first. To use "
                "different options for some parameters, pass parameter groups to one ShardedOptimizer."
            )

    def _shard_parameters(self, group: Mapping[str, Any]) -> list[nn.Parameter]:
        return [shard.parameter for shard in self._shards(group)]

    def _shards(self, group: Mapping[str, Any]) -> list[Shard]:
        names = {parameter: name for name, parameter in parameters_of(self.module, self.module.plan).items()}
        for parameter in group["params"]:
            if parameter not in names:
                raise SDPError(
                    f"The optimizer was given a parameter of shape {list(parameter.shape)} that is not the module's. "
                    "Build it after sdp.compile() and materialize(), from the parameters of the compiled module."
                )
        return [shard for parameter in group["params"] for shard in self._layout.shards[names[parameter]]]

    def _check_parameters(self, parameters: Mapping[str, nn.Parameter]) -> None:
        current = set(parameters.values())
        if any(parameter not in current for group in self.param_groups for parameter in group["params"]):
            raise SDPError(
                "The model's parameters were replaced after the ShardedOptimizer was built, for example by "
                "load_state_dict(assign=True). Delete the optimizer and build another one."
            )

    def _follow_options(self) -> None:
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update(_options(group))

    def _adopt(self) -> None:
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            group.update(_options(inner))
        self.state = self._inner.state

    def _identity(self) -> dict[str, Any]:
        names = [
            [(shard.name, shard.start, shard.stop) for shard in self._shards(group)] for group in self.param_groups
        ]
        return {"plan": self.module.plan.digest, "worker": self.module.rank, "names": names}


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _NOT_OPTIONS}


def _part(shard: Shard, value: Any, shape: torch.Size) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A copy for each shard, also of scalars: optimizers count steps in place.
    return (shard.part(value) if value.shape == shape else value).clone()


def _end(reduction: ReduceScatter, before: ByLevels, engine: weakref.ref[GradientEngine]) -> None:
    """Gives the model its ordinary gradients back, after the optimizer was deleted."""
    reduction.end()
    current = engine()
    if current is not None and current.reduction is reduction:
        current.reduction = before
