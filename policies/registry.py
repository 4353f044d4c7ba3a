"""Policies by name: built in, registered by `register_policy`, offered by installed packages, or from TOML files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from sdp_compile.errors import PolicyError
from sdp_compile.policies.base import Policy
from sdp_compile.registry import Registry
from sdp_compile.toml import read_toml

PolicyClass = TypeVar("PolicyClass", bound=type[Policy])

POLICIES: Registry[Policy] = Registry(
    "policy", Policy, "sdp_compile.policies", PolicyError, hint="The name of a TOML file must end in .toml."
)
"""All policies by name, including those that installed packages offer as entry points ``sdp_compile.policies``."""


def register_policy(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Registers the decorated policy class, for ``sdp_compile(model, name)``, TOML files and the command line.

    Args:
        name: The name of the policy.

    Returns:
        A decorator that registers a class and returns it.

    Raises:
        PolicyError: The class is not a policy, or another class is registered under this name.
    """

    def register(policy: PolicyClass) -> PolicyClass:
        POLICIES.register(name)(policy)
        policy.registered_name = name
        return policy

    return register


def registered_policies() -> dict[str, type[Policy]]:
    """Returns all policy classes by name, including those that installed packages offer as entry points.

    Raises:
        PolicyError: A policy of an installed package cannot be loaded.
    """
    return POLICIES.all()


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
    return POLICIES[text](**overrides)


def _from_mapping(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> Policy:
    name = values.get("policy", values.get("level", "auto"))
    if not isinstance(name, str):
        raise PolicyError(f"policy must be one of {', '.join(POLICIES.names())}, got {name!r}.")
    policy = POLICIES[name](**{str(key): value for key, value in values.items() if key != "policy"})
    return policy.replace(**overrides) if overrides else policy
