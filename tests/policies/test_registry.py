"""Policies by name: instances, registered names, mappings, entry points of installed packages."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from sdp_compile.errors import PolicyError
from sdp_compile.policies import (
    AutoPolicy,
    BlockPolicy,
    NeuronPolicy,
    Policy,
    register_policy,
    registered_policies,
    resolve_policy,
)
from sdp_compile.policies.registry import POLICIES

ROOT = Path(__file__).parents[2]


def test_resolving_names_instances_and_mappings():
    policy = BlockPolicy(coverage=0.25)
    assert resolve_policy(policy) is policy
    assert resolve_policy("auto") == AutoPolicy()
    assert resolve_policy("neuron", coverage=0.75) == NeuronPolicy(coverage=0.75)
    assert resolve_policy({"level": "block", "coverage": 0.25}) == policy
    assert resolve_policy({"policy": "block", "replicas": 2}, coverage=0.25) == policy
    assert resolve_policy({}) == AutoPolicy()
    with pytest.raises(PolicyError, match=r"Unknown policy 'neurn'\. Did you mean 'neuron'"):
        resolve_policy("neurn")
    with pytest.raises(PolicyError, match="got 7"):
        resolve_policy(7)
    with pytest.raises(PolicyError, match=r"policy must be one of auto, block, neuron.*, got 3"):
        resolve_policy({"policy": 3})


def test_policies_of_ones_own(monkeypatch):
    monkeypatch.setattr(POLICIES, "_registered", registered_policies())

    @register_policy("first-worker")
    class FirstWorkerPolicy(Policy):
        heads_of_rank_0: int = 1

        def partition(self, structure, workers):
            return {"heads": [range(workers)] * 4}

    policy = resolve_policy("first-worker", heads_of_rank_0=2)
    assert isinstance(policy, FirstWorkerPolicy) and policy.heads_of_rank_0 == 2
    assert policy.describe()["policy"] == "first-worker"
    assert resolve_policy({"policy": "first-worker", "coverage": 0.25}).coverage == 0.25
    with pytest.raises(PolicyError, match="already a policy 'first-worker'"):

        @register_policy("first-worker")
        class Another(FirstWorkerPolicy):
            pass

    class Unregistered(NeuronPolicy):
        pass

    assert Unregistered().describe()["policy"].endswith("Unregistered")


def test_entry_points_name_policies(monkeypatch):
    points = importlib.metadata.EntryPoints(
        [
            importlib.metadata.EntryPoint("theirs", "sdp_compile.policies:BlockPolicy", "sdp_compile.policies"),
            importlib.metadata.EntryPoint("broken", "no_such_module:Policy", "sdp_compile.policies"),
        ]
    )
    monkeypatch.setattr("sdp_compile.registry.entry_points", lambda **which: points.select(**which))
    assert resolve_policy("theirs") == BlockPolicy()
    assert resolve_policy({"policy": "theirs", "coverage": 0.25}) == BlockPolicy(coverage=0.25)
    with pytest.raises(PolicyError, match="The policy 'broken' of 'no_such_module:Policy' cannot be loaded"):
        resolve_policy("broken")
    with pytest.raises(PolicyError, match=r"Unknown policy 'their'\. Did you mean 'theirs'.*must end in \.toml"):
        resolve_policy("their")


def test_the_folder_has_one_identity():
    code = "import sys; sys.path.insert(0, '.'); import policies"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0 and "Import this folder as sdp_compile.policies" in result.stderr
