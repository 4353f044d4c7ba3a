"""The attributes that every part of the runtime may use of a compiled module."""

from __future__ import annotations

from typing import Any

from torch import nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.ir.program import Capture
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Schedule
from sdp_compile.runtime.peers import Peers

_WRAPPED = ("_orig_mod", "module", "_forward_module", "sdp_module")
"""The names of what torch.compile, PyTorch's other wrappers and Lightning Fabric wrap."""


class Subnetwork(nn.Module):
    """One worker's module, as the runtime sees it.

    Attributes:
        holdings: Which tensors it holds, and where they lie in the full ones.
        capture: The original model as captured, with the constants of all graphs that were added since.
        number: Identifies the module in this process; compiled graphs use it to find the gradient engine.
        peers: Its connection to the other workers; None without a process group.
        schedule: What `advance` follows; None for a model that was compiled with a policy.
    """

    holdings: Holdings
    capture: Capture
    number: int
    peers: Peers | None
    schedule: Schedule | None = None

    @property
    def plan(self) -> Plan:
        """Who owns what; the same on all workers."""
        return self.holdings.plan

    @property
    def rank(self) -> int:
        """The worker's number, from 0."""
        return self.holdings.rank

    @property
    def workers(self) -> int:
        """The number of workers of the plan."""
        return self.holdings.plan.workers


def skeleton_of(module: Subnetwork) -> nn.Module:
    """Returns the original without weights, with the settings that it has now.

    Args:
        module: A compiled module.
    """
    programs = vars(module).get("_programs")
    skeleton: nn.Module = module.capture.skeleton if programs is None else programs.state.skeleton
    return skeleton


def set_extra_state(module: Subnetwork, path: str, extra: Any) -> None:
    """Gives a module of the original its extra state, of which the next call knows.

    Args:
        module: A compiled module.
        path: The module's name in the original.
        extra: What its ``get_extra_state()`` returned.
    """
    vars(module)["_programs"].state.set_extra(path, extra)


def require_peers(module: Subnetwork, what: str) -> Peers | None:
    """Returns the connection that a collective of ``module`` needs; None if one worker owns everything.

    Args:
        module: A compiled module.
        what: What the collective is called in the error.

    Raises:
        DistributedError: If there are other workers and no process group.
    """
    if module.peers is None and module.workers > 1:
        raise DistributedError(
            f"{what} needs the other workers, but this is worker {module.rank} of {module.workers} without a process "
            "group. Start the script with torchrun, and call torch.distributed.init_process_group() before "
            "sdp.compile(). An unpickled module has no peers: compile the model again."
        )
    return module.peers


def compiled_within(model: nn.Module) -> Subnetwork | None:
    """Returns the compiled module inside wrappers; None if there is none.

    Args:
        model: A compiled module, a wrapper of one such as ``torch.compile`` returns, or anything else.
    """
    inner: nn.Module | None = model if isinstance(model, nn.Module) else None
    while inner is not None and not isinstance(inner, Subnetwork):
        # Not getattr: the wrapper of torch.compile forwards all attributes of what it wraps.
        held = inner._modules
        inner = next((held[name] for name in _WRAPPED if held.get(name) is not None), None)
    return inner


def unwrapped(model: nn.Module) -> Subnetwork:
    """Returns the compiled module inside wrappers.

    Args:
        model: A compiled module, or a wrapper of one such as ``torch.compile`` returns.

    Raises:
        SDPError: If ``model`` does not hold a compiled module.
    """
    found = compiled_within(model)
    if found is None:
        raise SDPError(f"Expected a model from sdp.compile() or a wrapper of one, got {type(model).__name__}.")
    return found
