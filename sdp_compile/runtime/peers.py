"""A module's connection to the other workers: process groups, gradient engine, and the refresh of values."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.comm.agreement import known_to_any
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.transfer import hand_out
from sdp_compile.runtime.contract.tokens import contract_of, tokens_of
from sdp_compile.runtime.gradients.compiled import launched_by
from sdp_compile.runtime.gradients.engine import GradientEngine
from sdp_compile.runtime.levels.equalise import equalise
from sdp_compile.runtime.levels.refresh import Refresh
from sdp_compile.runtime.levels.route import Route
from sdp_compile.runtime.owners.backward import backward_statement
from sdp_compile.runtime.tensors import local_tensors


class Peers:
    """Connects a module with its peers: creates the process groups, makes owned values equal and hooks the gradients.

    Collective: all ranks construct it after the handshake, for modules of one plan. The values of a module on the meta
    device are made equal when it is materialised.

    Args:
        module: This worker's module, which holds the tensors of ``holdings``.
        holdings: Which tensors those are.
        groups: The workers' process groups.
        number: The number of the module, which compiled graphs use to find the gradient engine.
        bucket_bytes: Upper bound of the size of one gradient reduction in bytes.
        comm_dtype: The dtype in which gradients travel; by default their own.
        check_finite: Whether a gradient that is infinite or NaN on any worker is an error on all.
        reduction: How the owners' gradients make up a unit's: ``"mean"``, ``"sum"`` or ``"tokens"``.
        broadcast_from: The worker whose ``values`` all workers start from; None for each piece's first owner.
        values: The full tensors by name, on the same devices (meta or not) on all workers.

    Attributes:
        differing: The tensors that some worker would have started with other values of, if ``broadcast_from`` is set.

    Raises:
        DistributedError: If the process group has another size or rank than the module's plan.
    """

    def __init__(
        self,
        module: nn.Module,
        holdings: Holdings,
        groups: Groups,
        number: int,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        comm_dtype: torch.dtype | None = None,
        check_finite: bool = False,
        reduction: str = "mean",
        broadcast_from: int | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        plan, rank = holdings.plan, holdings.rank
        if groups.workers != plan.workers or groups.rank != rank:
            raise DistributedError(
                f"The module is worker {rank} of {plan.workers}, but this process is rank {groups.rank} of "
                f"{groups.workers} in the process group. Compile the model again for this process group."
            )
        self.holdings, self.groups = holdings, groups
        self.bucket_bytes, self.comm_dtype, self.check_finite = bucket_bytes, comm_dtype, check_finite
        self._reduction = reduction
        self._followed: torch.utils.hooks.RemovableHandle | None = None
        self._connect(module, number)
        self.differing: tuple[str, ...] = ()
        if broadcast_from is None or values is None:
            self.equalise(module)
        else:
            self._start_from(broadcast_from, values, module)

    def attach(self, module: nn.Module, number: int) -> Peers:
        """Returns the connection of a copy of the module, with the same groups and its own hooks. Not collective."""
        result = copy.copy(self)
        result._followed = None
        result._connect(module, number)
        result.engine.values_are_compared = False  # an average of weights over time may round each slice differently
        return result

    def follow_plan(self, module: nn.Module, number: int, holdings: Holdings) -> None:
        """Averages and refreshes by another plan of the same workers from now on. Collective.

        Args:
            module: The module, which has the tensors of that plan already.
            number: The number of the module.
            holdings: Which tensors those are.
        """
        self.engine.detach()
        self.holdings = holdings
        self._connect(module, number)

    def _connect(self, module: nn.Module, number: int) -> None:
        plan, rank = self.holdings.plan, self.holdings.rank
        self.groups.create(plan.levels)
        self.route = Route(plan.levels, self.groups)
        buckets = plan.buckets(rank, self.bucket_bytes)
        contract = contract_of(self._reduction, self.holdings, self.groups)
        self.engine = engine = GradientEngine(
            module,
            self.holdings,
            self.route,
            buckets,
            plan.exchanges(self.bucket_bytes),
            self.comm_dtype,
            self.check_finite,
            contract,
        )
        engine.in_backward = backward_statement
        launched_by(number, engine)
        self.refresher = engine.refresher = (
            Refresh(module, self.holdings, self.route, self.bucket_bytes) if plan.masking == "backward" else None
        )
        followers = [weakref.WeakMethod(engine.rehook)]  # load_state_dict(assign=True) replaces parameters
        if self.refresher is not None:
            followers.append(weakref.WeakMethod(self.refresher.refresh))  # a rank's state_dict() lacks what others own

        def follow(*_: object) -> None:
            for follower in followers:
                method = follower()
                if method is not None:
                    method()

        if self._followed is not None:
            self._followed.remove()
        self._followed = module.register_load_state_dict_post_hook(follow)

    @property
    def group(self) -> dist.ProcessGroup:
        """The workers' common process group."""
        return self.groups.group

    def rehook(self) -> None:
        """Hooks the module's parameters again, after other Parameter objects have replaced them."""
        self.engine.rehook()

    def _start_from(self, source: int, values: Mapping[str, Tensor], module: nn.Module) -> None:
        """Gives all workers the values of one, and notes what would have differed. Collective."""
        if self.groups.peers_are_fake:
            return
        state = [name for name, tensor in self.holdings.plan.state.items() if tensor.kind != "constant"]
        sent = {name: values[name] for name in state if not values[name].is_meta}
        tensors, changed = local_tensors(module), set[str]()
        hand_out(source, sent, tensors, self.holdings, self.groups, changed)
        equalise([(name, tensors[name]) for name in sent if name in tensors], self.holdings, self.route, changed)
        self.differing = known_to_any(changed, list(sent), self.groups)
        if len(sent) == len(state):
            self.refresh_parameters()

    def equalise(self, module: nn.Module) -> None:
        """Gives all owners the first owner's values, and all workers the shared buffers of worker 0. Collective."""
        tensors = local_tensors(module)
        named = [
            (name, tensors[name])
            for name, tensor in self.holdings.plan.state.items()
            if name in tensors and tensor.kind != "constant"
        ]
        real = [(name, tensor) for name, tensor in named if tensor.device.type != "meta"]
        if real and len(real) == len(named):
            equalise(real, self.holdings, self.route)
            self.refresh_parameters()

    def refresh_parameters(self) -> None:
        """Under backward masking, fetches the values that other workers own. Collective."""
        if self.refresher is not None:
            self.refresher.refresh()

    def no_sync(self) -> AbstractContextManager[None]:
        """Within this context, backward only accumulates."""
        return self.engine.no_sync()

    def sync_gradients(self) -> None:
        """Averages pending gradients, and does nothing if none are pending. Collective."""
        self.engine.sync()


def weighted(peers: Peers | None, tokens: float | Tensor) -> AbstractContextManager[None]:
    """Returns the context in which gradients are means over ``tokens`` tokens; raises `SDPError` without peers."""
    if peers is None:
        raise SDPError(
            "model.weighted() is for a model that was compiled with reduction='tokens' in a process group, and this "
            "one communicates with nobody. Leave it out."
        )
    return tokens_of(peers.engine.contract).weighted(tokens)
