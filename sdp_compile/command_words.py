"""Checks of command line words that several commands share, made before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdp_compile.errors import PassError, PolicyError, SDPError

DEFAULT_WORKERS = 4
DEFAULT_SCHEDULE = "dense-tail"
DEFAULT_RATE_BY_OWNERS = 0.5
"""What `sdp-compile train` trains by, with sharded state, where nothing else is asked for."""

DEFAULT_COVERAGE = 0.5


def is_policy_file(policy: str) -> bool:
    """Whether ``--policy`` or ``--schedule`` is a path rather than a name."""
    return policy.endswith(".toml") or os.sep in policy


def check_policy_words(
    policy: str, coverage: float | None, node_size: int | None = None, workers: int | None = None
) -> None:
    """Raises `PolicyError` for a ``--policy`` file that does not exist, or numbers that cannot be right.

    Args:
        policy: ``--policy``, a name or a file.
        coverage: ``--coverage``, in (0, 1].
        node_size: ``--node-size``, which divides the workers.
        workers: ``--workers``.
    """
    if coverage is not None and not 0 < coverage <= 1:
        raise PolicyError(
            f"--coverage must lie in (0, 1], got coverage={coverage:g}. It is the share of the workers that own a "
            "unit: 0.5 halves the partitioned parameters, 1.0 is data parallelism."
        )
    if node_size is not None and workers is not None and workers % node_size:
        raise PolicyError(
            f"--node-size {node_size} does not divide the {workers} workers into nodes of equal size. Choose --workers "
            f"as a multiple of {node_size}, or another --node-size."
        )
    check_file_words("--policy", policy, "a policy's name")


def check_file_words(option: str, value: str, other: str) -> None:
    """Raises `PolicyError` for a file that does not exist.

    Args:
        option: The option.
        value: Its value, a name or a file.
        other: What else it may be.
    """
    if is_policy_file(value) and not Path(value).is_file():
        raise PolicyError(f"{option} {value}: no such file. Pass a TOML file or {other}.")


def check_passes_words(passes: str | None) -> None:
    """Raises `PassError` for a ``--passes`` file that does not exist. Names are checked once passes are imported."""
    if passes is not None and (passes.endswith(".toml") or os.sep in passes) and not Path(passes).is_file():
        raise PassError(f"--passes {passes}: no such file. Pass a TOML file, or names of passes.")


def policy_fields(
    coverage: float | None = None, masking: str | None = None, node_size: int | None = None
) -> dict[str, Any]:
    """Returns the policy fields that were given beside its name."""
    fields = {"coverage": coverage, "masking": masking, "node_size": node_size}
    return {key: value for key, value in fields.items() if value is not None}


def check_ranks(ranks: Iterable[int], workers: int) -> None:
    """Raises `SDPError` for a ``--rank`` that is not one of the workers."""
    for rank in ranks:
        if not 0 <= rank < workers:
            raise SDPError(f"--rank must lie in 0 to {workers - 1} with --workers {workers}, got --rank {rank}.")


def check_file(option: str, path: str | None) -> None:
    """Raises `SDPError` where ``option`` names a file that cannot be written; "-" is standard output."""
    if path in (None, "-"):
        return
    if Path(str(path)).is_dir() or not Path(str(path)).resolve().parent.is_dir():
        raise SDPError(f"{option} {path}: name a file in a folder that exists.")


def check_folder(option: str, path: str | None) -> None:
    """Raises `SDPError` where ``option`` names a folder that neither exists nor can be made."""
    if (
        path is not None
        and not Path(path).is_dir()
        and (Path(path).exists() or not Path(path).resolve().parent.is_dir())
    ):
        raise SDPError(f"{option} {path}: name a folder, or a new one in a folder that exists.")
