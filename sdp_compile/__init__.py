"""Subnetwork Data Parallelism for any PyTorch model.

``import sdp_compile as sdp`` gives ``sdp.compile(model, policy)`` and everything else that users need. SDP always means
Subnetwork Data Parallelism here, never PyTorch's scaled dot product attention.

The public names are loaded on first use, so that importing the package (and the command line's help) does not import
torch.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdp_compile._version import __version__
from sdp_compile.errors import (
    CaptureError,
    DamagedState,
    DistributedError,
    LoweringError,
    NothingToPartition,
    PassError,
    PlanError,
    PolicyError,
    SDPError,
    StructureError,
)

for _link in ("passes", "policies"):
    if not (Path(__file__).parent / _link).is_dir():
        raise ImportError(
            f"sdp_compile/{_link} must be a link to the folder {_link} beside the package, and this copy has lost it "
            "(some archives and Windows checkouts do). Use `git clone -c core.symlinks=true`, or install a wheel."
        )

_OLDEST_TORCH = (2, 11)


def _check_torch() -> None:
    """Raises ImportError if the installed torch is too old. It is not imported; without one, its import will say so."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return
    numbers = re.match(r"(\d+)\.(\d+)", installed)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"sdp_compile needs torch {oldest} or newer, and {installed} is installed. Update it with "
            f"`pip install 'torch>={oldest}'`."
        )


_check_torch()

if TYPE_CHECKING:
    from sdp_compile.checking.check import check
    from sdp_compile.checking.verdict import CheckResult
    from sdp_compile.checkpoint.background import Saving
    from sdp_compile.checkpoint.load import Restored, load_checkpoint
    from sdp_compile.checkpoint.samples import SampleOrder
    from sdp_compile.checkpoint.save import save_checkpoint
    from sdp_compile.checkpoint.stateful import CheckpointState
    from sdp_compile.compiler import plan, sdp_compile
    from sdp_compile.compiler import sdp_compile as compile
    from sdp_compile.emulation.emulate import Emulation, emulate
    from sdp_compile.ir.program import Program, copy_program
    from sdp_compile.ownership.owners import Ownership
    from sdp_compile.ownership.partition import Partition
    from sdp_compile.passes import Pass, PassContext, pipeline, register_pass, with_pass
    from sdp_compile.planning.plan import Plan
    from sdp_compile.policies import (
        AutoPolicy,
        BlockPolicy,
        LearningRate,
        NeuronPolicy,
        Phase,
        Placement,
        Policy,
        Schedule,
        design,
        register_policy,
        resolve_schedule,
    )
    from sdp_compile.runtime.module.sdp_module import SDPModule
    from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
    from sdp_compile.runtime.optimizer.full_state import full_optimizer_state_dict, load_full_optimizer_state_dict
    from sdp_compile.runtime.optimizer.scaler import GradScaler
    from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
    from sdp_compile.runtime.state.statistics import calibrate
    from sdp_compile.structure.families import Family, Structure
    from sdp_compile.structure.operators import RuleContext, Value, rule

_HOMES = {
    "AutoPolicy": "policies",
    "BlockPolicy": "policies",
    "CheckResult": "checking.verdict",
    "CheckpointState": "checkpoint.stateful",
    "PassContext": "passes",
    "Emulation": "emulation.emulate",
    "Family": "structure.families",
    "GradScaler": "runtime.optimizer.scaler",
    "LearningRate": "policies",
    "NeuronPolicy": "policies",
    "Ownership": "ownership.owners",
    "Partition": "ownership.partition",
    "Pass": "passes",
    "Phase": "policies",
    "Placement": "policies",
    "Plan": "planning.plan",
    "Policy": "policies",
    "Program": "ir.program",
    "Restored": "checkpoint.load",
    "RuleContext": "structure.operators",
    "SDPModule": "runtime.module.sdp_module",
    "SampleOrder": "checkpoint.samples",
    "Saving": "checkpoint.background",
    "Schedule": "policies",
    "ShardedOptimizer": "runtime.optimizer.sharded",
    "Structure": "structure.families",
    "Value": "structure.operators",
    "calibrate": "runtime.state.statistics",
    "check": "checking.check",
    "clip_grad_norm_": "runtime.optimizer.clipping",
    "copy_program": "ir.program",
    "design": "policies",
    "emulate": "emulation.emulate",
    "full_optimizer_state_dict": "runtime.optimizer.full_state",
    "load_checkpoint": "checkpoint.load",
    "load_full_optimizer_state_dict": "runtime.optimizer.full_state",
    "pipeline": "passes",
    "plan": "compiler",
    "register_pass": "passes",
    "register_policy": "policies",
    "resolve_schedule": "policies",
    "rule": "structure.operators",
    "save_checkpoint": "checkpoint.save",
    "sdp_compile": "compiler",
    "with_pass": "passes",
}
"""The module that each public name comes from."""

__all__ = [
    "AutoPolicy",
    "BlockPolicy",
    "CaptureError",
    "CheckResult",
    "CheckpointState",
    "DamagedState",
    "DistributedError",
    "Emulation",
    "Family",
    "GradScaler",
    "LearningRate",
    "LoweringError",
    "NeuronPolicy",
    "NothingToPartition",
    "Ownership",
    "Partition",
    "Pass",
    "PassContext",
    "PassError",
    "Phase",
    "Placement",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "Program",
    "Restored",
    "RuleContext",
    "SDPError",
    "SDPModule",
    "SampleOrder",
    "Saving",
    "Schedule",
    "ShardedOptimizer",
    "Structure",
    "StructureError",
    "Value",
    "__version__",
    "calibrate",
    "check",
    "clip_grad_norm_",
    "compile",
    "copy_program",
    "design",
    "emulate",
    "full_optimizer_state_dict",
    "load_checkpoint",
    "load_full_optimizer_state_dict",
    "pipeline",
    "plan",
    "register_pass",
    "register_policy",
    "resolve_schedule",
    "rule",
    "save_checkpoint",
    "sdp_compile",
    "with_pass",
]


def __getattr__(name: str) -> Any:
    if name == "compile":
        value = __getattr__("sdp_compile")
    elif name in _HOMES:
        value = getattr(import_module(f"sdp_compile.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
