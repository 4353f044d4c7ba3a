"""Subnetwork data parallelism for any PyTorch model: ``sdp_compile(model, policy)``.

The public names are loaded on first use, so that importing the package (and the command line's help) does not import
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdp_compile._version import __version__
from sdp_compile.errors import (
    CaptureError,
    DistributedError,
    LoweringError,
    NothingToPartition,
    PlanError,
    PolicyError,
    SDPError,
    StructureError,
)

if TYPE_CHECKING:
    from sdp_compile.checking.check import check
    from sdp_compile.checking.verdict import CheckResult
    from sdp_compile.compiler import sdp_compile
    from sdp_compile.planning.plan import Plan
    from sdp_compile.policies import AutoPolicy, BlockPolicy, NeuronPolicy, Policy, register_policy
    from sdp_compile.runtime.module.sdp_module import SDPModule
    from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
    from sdp_compile.runtime.optimizer.scaler import GradScaler
    from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
    from sdp_compile.runtime.state.statistics import calibrate
    from sdp_compile.structure.operators import rule

_HOMES = {
    "sdp_compile": "sdp_compile.compiler",
    "check": "sdp_compile.checking.check",
    "CheckResult": "sdp_compile.checking.verdict",
    "Plan": "sdp_compile.planning.plan",
    "AutoPolicy": "sdp_compile.policies",
    "BlockPolicy": "sdp_compile.policies",
    "NeuronPolicy": "sdp_compile.policies",
    "Policy": "sdp_compile.policies",
    "register_policy": "sdp_compile.policies",
    "GradScaler": "sdp_compile.runtime.optimizer.scaler",
    "SDPModule": "sdp_compile.runtime.module.sdp_module",
    "ShardedOptimizer": "sdp_compile.runtime.optimizer.sharded",
    "clip_grad_norm_": "sdp_compile.runtime.optimizer.clipping",
    "calibrate": "sdp_compile.runtime.state.statistics",
    "rule": "sdp_compile.structure.operators",
}

__all__ = [
    "AutoPolicy",
    "BlockPolicy",
    "CaptureError",
    "CheckResult",
    "DistributedError",
    "GradScaler",
    "LoweringError",
    "NeuronPolicy",
    "NothingToPartition",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "SDPError",
    "SDPModule",
    "ShardedOptimizer",
    "StructureError",
    "__version__",
    "calibrate",
    "check",
    "clip_grad_norm_",
    "register_policy",
    "rule",
    "sdp_compile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
