"""Policies say which units of a model each worker owns. Each has its own file; designs.py places units on workers."""

if __name__ != "sdp_compile.policies":
    raise ImportError(
        "Import this folder as sdp_compile.policies. A bare 'import policies' would load every module a second time, "
        "with classes that differ from the package's."
    )

from sdp_compile.policies.auto import AutoPolicy
from sdp_compile.policies.base import Override, Policy
from sdp_compile.policies.block import BlockPolicy
from sdp_compile.policies.designs import Design, design, designs
from sdp_compile.policies.neuron import NeuronPolicy
from sdp_compile.policies.placement import Placement
from sdp_compile.policies.registry import register_policy, registered_policies, resolve_policy
from sdp_compile.policies.schedule import LearningRate, Phase, Schedule
from sdp_compile.policies.schedules import is_schedule, ready_schedules, resolve_schedule

__all__ = [
    "AutoPolicy",
    "BlockPolicy",
    "Design",
    "LearningRate",
    "NeuronPolicy",
    "Override",
    "Phase",
    "Placement",
    "Policy",
    "Schedule",
    "design",
    "designs",
    "is_schedule",
    "ready_schedules",
    "register_policy",
    "registered_policies",
    "resolve_policy",
    "resolve_schedule",
]
