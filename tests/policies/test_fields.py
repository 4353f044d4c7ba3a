"""Fields, errors, names and TOML files of policies."""

from __future__ import annotations

import importlib.metadata
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.policies import (
    AutoPolicy,
    BlockPolicy,
    NeuronPolicy,
    Policy,
    register_policy,
    registered_policies,
    resolve_policy,
)
from sdp_compile.policies.base import Override

ROOT = Path(__file__).parents[2]


def test_defaults():
    policy = NeuronPolicy()
    assert (policy.coverage, policy.replicas, policy.design, policy.masking) == (0.5, None, "cyclic", "forward")
    assert BlockPolicy().design == "balanced"
    assert NeuronPolicy(replicas=3).coverage is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"foo": 1}, r"NeuronPolicy has no field 'foo'\. Its fields are coverage, replicas"),
        ({"covrage": 0.5}, "Did you mean 'coverage'"),
        ({"coverage": 1.5}, r"coverage=1\.5 is not valid.*\(0, 1\]"),
        ({"coverage": 0}, r"coverage=0 is not valid"),
        ({"coverage": -0.5}, r"coverage=-0\.5 is not valid"),
        ({"coverage": True}, r"coverage=True is not valid"),
        ({"coverage": "0.5"}, r"coverage='0\.5' is not valid"),
        ({"coverage": float("nan")}, r"coverage=nan is not valid"),
        ({"coverage": float("inf")}, r"coverage=inf is not valid"),
        ({"replicas": 0}, "replicas=0 is not valid; replicas is the number of workers"),
        ({"replicas": 1.5}, r"replicas=1\.5 is not valid"),
        ({"replicas": True}, r"replicas=True is not valid"),
        ({"coverage": 0.5, "replicas": 2}, "coverage or replicas, not both"),
        ({"axes": "some"}, "axes='some' is not valid; input should be 'disjoint' or 'all'"),
        ({"design": "cylic"}, "no design 'cylic'. Did you mean 'cyclic'"),
        ({"masking": "backward", "rescale": True}, "rescale=True makes up for units"),
        ({"align": 0}, "align=0 is not valid"),
        ({"rules": {"a": {"coverage": 2}}}, "the rule 'a' is not valid.*coverage=2"),
        ({"rules": {"a": {"covrage": 0.2}}}, "no field 'covrage'. Did you mean 'coverage'"),
        ({"rules": {"a": "sharde"}}, "the rule 'a' is 'sharde'.*'shared'"),
        ({"rules": ["a"]}, "rules maps patterns"),
        ({"level": "block"}, "level='block' is not valid"),
    ],
)
def test_mistakes_are_policy_errors(fields, message):
    with pytest.raises(PolicyError, match=message) as caught:
        NeuronPolicy(**fields)
    assert isinstance(caught.value, SDPError) and isinstance(caught.value, ValueError)
    with pytest.raises(PolicyError, match=message):
        NeuronPolicy.model_validate(fields)


def test_policies_are_frozen_and_replaced():
    policy = NeuronPolicy(replicas=3, align=8)
    with pytest.raises(ValueError, match="frozen"):
        policy.align = 4
    assert policy.replace(coverage=0.25) == NeuronPolicy(coverage=0.25, align=8)
    assert NeuronPolicy().replace(replicas=2).coverage is None
    with pytest.raises(PolicyError, match="coverage=7"):
        policy.replace(coverage=7)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_resolving_names_instances_and_mappings():
    policy = BlockPolicy(coverage=0.25)
    assert resolve_policy(policy) is policy
    assert resolve_policy("auto") == AutoPolicy()
    assert resolve_policy("neuron", coverage=0.75) == NeuronPolicy(coverage=0.75)
    assert resolve_policy({"level": "block", "coverage": 0.25}) == policy
    assert resolve_policy({"policy": "block", "replicas": 2}, coverage=0.25) == policy
    assert resolve_policy({}) == AutoPolicy()
    with pytest.raises(PolicyError, match=r"no policy 'neurn'\. Did you mean 'neuron'"):
        resolve_policy("neurn")
    with pytest.raises(PolicyError, match="not 7"):
        resolve_policy(7)
    with pytest.raises(PolicyError, match="must be a name"):
        resolve_policy({"policy": 3})


@pytest.mark.parametrize(
    "policy",
    [
        NeuronPolicy(),
        BlockPolicy(replicas=2, granularity="layer", strict=True, seed=7),
        AutoPolicy(coverage=0.25),
        NeuronPolicy(rules={'quo"ted.*': "shared", "h.0": {"coverage": 0.25}, "h.*": Override(replicas=1)}, slots=4),
    ],
)
def test_toml_round_trip(policy, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(policy.to_toml(), encoding="utf-8")
    assert resolve_policy(str(path)) == policy
    assert resolve_policy(path) == policy


def test_broken_toml_files(tmp_path):
    path = tmp_path / "broken.toml"
    with pytest.raises(PolicyError, match=r"no policy file .*missing\.toml"):
        resolve_policy(str(tmp_path / "missing.toml"))
    path.write_text('level = "neuron"\ncoverage = = 2\n')
    with pytest.raises(PolicyError, match=r"broken\.toml' is no valid TOML.*line 2"):
        resolve_policy(str(path))
    path.write_text('level = "neuron"\ncovrage = 0.5\n')
    with pytest.raises(PolicyError, match=r"broken\.toml': NeuronPolicy has no field 'covrage'"):
        resolve_policy(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot be read"):
        resolve_policy(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        resolve_policy(tmp_path)


def test_policies_of_ones_own(monkeypatch):
    monkeypatch.setattr("sdp_compile.policies.registry._REGISTERED", registered_policies())

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
    good = importlib.metadata.EntryPoint("theirs", "sdp_compile.policies:BlockPolicy", "sdp_compile.policies")
    bad = importlib.metadata.EntryPoint("broken", "no_such_module:Policy", "sdp_compile.policies")
    wrong = importlib.metadata.EntryPoint("wrong", "pathlib:Path", "sdp_compile.policies")
    points = importlib.metadata.EntryPoints([good, bad, wrong])
    monkeypatch.setattr("sdp_compile.policies.registry.entry_points", lambda **which: points.select(**which))
    assert resolve_policy("theirs") == BlockPolicy()
    with pytest.raises(PolicyError, match="'broken' of 'no_such_module:Policy' cannot be loaded"):
        resolve_policy("broken")
    with pytest.raises(PolicyError, match="no subclass of Policy"):
        resolve_policy("wrong")


def test_the_folder_has_one_identity():
    code = "import sys; sys.path.insert(0, '.'); import policies"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0 and "imported as sdp_compile.policies" in result.stderr
