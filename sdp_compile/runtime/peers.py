"""What an SDPModule needs to train together with others: its process groups and its gradient engine."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from sdp_compile.errors import DistributedError
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.holdings import Local, local_tensors
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.refresh import Refresh
from sdp_compile.runtime.comm.transfer import equalise
from sdp_compile.runtime.gradients.all_to_all import Exchange, is_crowded
from sdp_compile.runtime.gradients.compiled import launched_by
from sdp_compile.runtime.gradients.engine import GradientEngine
from sdp_compile.runtime.optimizer.guard import install_optimizer_guard

if TYPE_CHECKING:
    from sdp_compile.runtime.module.sdp_module import SDPModule


class Runtime:
    """Connects a module with its peers: creates the owner groups, makes owned values equal, hooks the gradients.

    Collective: every rank must construct it after the handshake, with modules of one plan. A module on the meta device
    is made equal when it is materialised.
    """

    def __init__(
        self,
        module: SDPModule,
        groups: Groups,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        comm_dtype: torch.dtype | None = None,
        check_finite: bool = False,
    ) -> None:
        plan = module.plan
        if groups.workers != plan.workers or groups.rank != module.rank:
            raise DistributedError(
                f"The module is worker {module.rank} of {plan.workers}, the process group has this process as rank "
                f"{groups.rank} of {groups.workers}."
            )
        self.groups = groups
        self.bucket_bytes, self.comm_dtype, self.check_finite = bucket_bytes, comm_dtype, check_finite
        groups.create(plan.groups)
        install_optimizer_guard()
        self._connect(module)
        self.equalise(module)

    def attach(self, module: SDPModule) -> Runtime:
        """A runtime for a copy of the module: the same groups, hooks of its own. Nothing is communicated."""
        copy = object.__new__(Runtime)
        copy.groups, copy.bucket_bytes = self.groups, self.bucket_bytes
        copy.comm_dtype, copy.check_finite = self.comm_dtype, self.check_finite
        copy._connect(module)
        return copy

    def _connect(self, module: SDPModule) -> None:
        self.local = Local(module.plan, module.rank, module.lowering)
        buckets = module.plan.buckets(module.rank, self.bucket_bytes)
        self.engine = engine = GradientEngine(
            module, self.local, self.groups, buckets, self.comm_dtype, self.check_finite
        )
        if is_crowded(module.plan.buckets(bucket_bytes=self.bucket_bytes)):
            engine.reduction = Exchange(self.groups)
        launched_by(module._number, engine)
        self.refresher = engine.refresher = (
            Refresh(module, self.local, self.groups, self.bucket_bytes) if module.plan.masking == "backward" else None
        )
        followers = [weakref.WeakMethod(engine.refresh)]  # load_state_dict(assign=True) puts other parameters in place
        if self.refresher is not None:
            followers.append(weakref.WeakMethod(self.refresher.refresh))  # a rank's own state has nothing of the others

        def refresh(*_: object) -> None:
            for follower in followers:
                method = follower()
                if method is not None:
                    method()

        module.register_load_state_dict_post_hook(refresh)  # type: ignore[no-untyped-call]

    @property
    def group(self) -> dist.ProcessGroup:
        """The workers' common process group."""
        return self.groups.group

    def refresh(self) -> None:
        """Follows the module after other Parameter objects took the places of its own."""
        self.engine.refresh()

    def equalise(self, module: SDPModule) -> None:
        """Makes every owned value what it is on its first owner, buffers that all share what they are on worker 0."""
        tensors = local_tensors(module)
        named = [
            (name, tensors[name])
            for name, tensor in module.plan.state.items()
            if name in tensors and tensor.kind != "constant"
        ]
        real = [(name, tensor) for name, tensor in named if tensor.device.type != "meta"]
        if real and len(real) == len(named):
            equalise(real, self.local, self.groups)
            self.refresh_parameters()

    def refresh_parameters(self) -> None:
        """Under backward masking, fetches the values that other workers own. Collective."""
        if self.refresher is not None:
            self.refresher.refresh()

    def no_sync(self) -> AbstractContextManager[None]:
        """Within, backward only accumulates."""
        return self.engine.no_sync()

    def sync_gradients(self) -> None:
        """Reduces what is pending. Collective; nothing where nothing is pending."""
        self.engine.sync()


def require_runtime(module: SDPModule, what: str) -> Runtime | None:
    """The runtime that a collective of ``module`` needs; None where one worker owns everything."""
    runtime: Runtime | None = module.runtime
    if runtime is None and module.plan.workers > 1:
        raise DistributedError(
            f"{what} needs the other workers: this is worker {module.rank} of {module.plan.workers} without a process "
            "group. Start the script with torchrun and call torch.distributed.init_process_group() before "
            "sdp_compile(); a module that was unpickled must be compiled again to join its peers."
        )
    return runtime
