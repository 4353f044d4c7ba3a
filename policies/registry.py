"""Policies by name: built in, registered by `register_policy`, offered by installed packages, or from TOML files."""

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
    """Registers the decorated policy class, for ``sdp_compile(model, name)``, TOML files and the command line.

    Args:
        name: The name of the policy.

    Returns:
        A decorator that registers a class and returns it.

    Raises:
        PolicyError: Another class is registered under this name.
    """

    def register(policy: PolicyClass) -> PolicyClass:
        before = _REGISTERED.get(name)
        # Running a notebook cell again defines the same class again.
        if before is not None and before.__qualname__ != policy.__qualname__:
            raise PolicyError(f"There is already a policy {name!r}: {before.__module__}.{before.__qualname__}.")
        _REGISTERED[name] = policy
        policy.registered_name = name
        return policy

    return register


def registered_policies() -> dict[str, type[Policy]]:
    """Returns all policy classes by name, including those that installed packages offer as entry points.

    Raises:
        PolicyError: A policy of an installed package cannot be loaded.
    """
    found = {entry.name: _loaded(entry) for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **_REGISTERED}


def resolve_policy(policy: Policy | str | PathLike[str] | Mapping[str, Any], **overrides: Any) -> Policy:
    """Returns the policy that a user named.

    Args:
        policy: An instance, a registered name, a TOML file, or the content of a TOML file. In a file or mapping,
            ``policy`` is the registered name; without it ``level`` is, and without both it is "auto".
        **overrides: Fields to replace.

    Raises:
        PolicyError: No such policy or file exists, or a field is not valid.
    """
    if isinstance(policy, Policy):
        return policy.replace(**overrides) if overrides else policy
    if isinstance(policy, Mapping):
        return _from_mapping(policy, overrides)
    if not isinstance(policy, (str, PathLike)):
        raise PolicyError(f"policy must be an instance, a name, a TOML file or a mapping, got {policy!r}.")
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
        raise PolicyError(f"policy must be one of {', '.join(sorted(registered_policies()))}, got {name!r}.")
    policy = _class(name)(**{str(key): value for key, value in values.items() if key != "policy"})
    return policy.replace(**overrides) if overrides else policy


def _class(name: str) -> type[Policy]:
    if name in _REGISTERED:
        return _REGISTERED[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _loaded(entry)
    known = {*_REGISTERED, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))}
    raise PolicyError(
        f"Unknown policy {name!r}.{did_you_mean(name, known)} "
        f"The policies are {', '.join(sorted(known))}; the name of a TOML file must end in .toml."
    )


def _loaded(entry: EntryPoint) -> type[Policy]:
    try:
        policy = entry.load()
    except Exception as error:  # another package may raise anything, and the user needs its name
        raise PolicyError(f"The policy {entry.name!r} of {entry.value!r} cannot be loaded: {error}.") from error
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise PolicyError(f"The policy {entry.name!r} must be a subclass of Policy, got {entry.value!r}.")
    return policy
