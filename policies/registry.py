"""Policies by name: built in, added by ``register_policy``, offered by installed packages, or read from TOML files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from sdp_compile.errors import PolicyError, did_you_mean
from sdp_compile.policies.base import Policy
from sdp_compile.toml import read_toml

ENTRY_POINT_GROUP = "sdp_compile.policies"

PolicyClass = TypeVar("PolicyClass", bound=type[Policy])

_REGISTERED: dict[str, type[Policy]] = {}


def register_policy(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Registers a policy class under ``name``, for ``sdp_compile(model, name)``, TOML files and the command line."""

    def register(policy: PolicyClass) -> PolicyClass:
        before = _REGISTERED.get(name)
        # A notebook cell that is run again defines the same class again.
        if before is not None and before.__qualname__ != policy.__qualname__:
            raise PolicyError(f"There is already a policy {name!r}: {before.__module__}.{before.__qualname__}.")
        _REGISTERED[name] = policy
        policy.registered_name = name
        return policy

    return register


def registered_policies() -> dict[str, type[Policy]]:
    """All policy classes by name, with those that installed packages offer as entry points."""
    found = {entry.name: _loaded(entry) for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **_REGISTERED}


def resolve_policy(policy: Policy | str | PathLike[str] | Mapping[str, Any], **overrides: Any) -> Policy:
    """The policy that a user named: an instance, a registered name, a TOML file, or the content of one.

    ``overrides`` replace fields. In a TOML file or mapping ``policy`` holds the registered name; without it ``level``
    does; without both it is "auto".
    """
    if isinstance(policy, Policy):
        return policy.replace(**overrides) if overrides else policy
    if isinstance(policy, Mapping):
        return _from_mapping(policy, overrides)
    if not isinstance(policy, (str, PathLike)):
        raise PolicyError(f"A policy is an instance, a name, a TOML file or a mapping, not {policy!r}.")
    text = fspath(policy)
    if isinstance(policy, PathLike) or text.endswith(".toml") or "/" in text:
        try:
            return _from_mapping(read_toml(Path(text)), overrides)
        except PolicyError as error:
            raise error if text in str(error) else PolicyError(f"In the policy file {text!r}: {error}") from None
    return _class(text)(**overrides)


def _from_mapping(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> Policy:
    name = values.get("policy", values.get("level", "auto"))
    if not isinstance(name, str):
        raise PolicyError(f"policy={name!r} must be a name: one of {', '.join(sorted(registered_policies()))}.")
    policy = _class(name)(**{str(key): value for key, value in values.items() if key != "policy"})
    return policy.replace(**overrides) if overrides else policy


def _class(name: str) -> type[Policy]:
    if name in _REGISTERED:
        return _REGISTERED[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _loaded(entry)
    known = {*_REGISTERED, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))}
    raise PolicyError(
        f"There is no policy {name!r}.{did_you_mean(name, known)} "
        f"The policies are {', '.join(sorted(known))}; a TOML file's name ends in .toml."
    )


def _loaded(entry: EntryPoint) -> type[Policy]:
    try:
        policy = entry.load()
    except Exception as error:  # whatever the other package raises, the user needs its name
        raise PolicyError(f"The policy {entry.name!r} of {entry.value!r} cannot be loaded: {error}.") from error
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise PolicyError(f"The policy {entry.name!r} is {entry.value!r}, which is no subclass of Policy.")
    return policy
