"""Checkpoints that only PyTorch's own reader can open, which runs code from them: for those that the user trusts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.model import model_of
from sdp_compile.checkpoint.stateful import CheckpointState
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError, did_you_mean


def load_foreign(path: Path, model: nn.Module, optimizer: Optimizer | None, what: str) -> None:
    """Loads the original model, and its optimizer, from a checkpoint of ``torch.distributed.checkpoint``. Collective.

    The model's keys may stand anywhere in the checkpoint, and the optimizer's are those of ``get_state_dict``. Each
    worker reads what it needs.

    Args:
        path: The checkpoint.
        model: A compiled module, or the original.
        optimizer: An optimizer of its parameters, or None.
        what: The call, for errors.

    Raises:
        SDPError: If the checkpoint is that of another model, or cannot be read.
        DistributedError: If that happens on another worker.
    """
    found = model_of(model, what)
    team = Team(found.peers, what)
    state = CheckpointState(model, optimizer)
    content = state.state_dict()
    with team.together(lambda: str(path), what="checkpoint"):
        known = _names(path)
        wanted = _at(_prefix(content["model"], known, path), content["model"])
        if optimizer is not None:
            saved = content["optimizer"]
            keys = [f"state.{name}.{key}" for name, states in saved["state"].items() for key in states]
            keys += [f"param_groups.{number}.params" for number in range(len(saved["param_groups"]))]
            _join(wanted, _at(_prefix(keys, known, path), saved))
    with team.together(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")
        try:
            load(wanted, checkpoint_id=path, process_group=team.group, no_dist=team.group is None)
        except CheckpointException as error:  # no Exception, but what several workers met
            cause = next(iter(error.failures.values()))[0]
            raise SDPError(f"{path} cannot be loaded: {type(cause).__name__}: {cause}.") from error
        except Exception as error:
            raise SDPError(f"{path} cannot be loaded: {type(error).__name__}: {error}.") from error
    state.load_state_dict(content)


def _names(path: Path) -> list[str]:
    try:
        return list(FileSystemReader(path).read_metadata().state_dict_metadata)
    except Exception as error:
        raise SDPError(f"{path} has no description that PyTorch can read: {type(error).__name__}: {error}.") from error


def _prefix(keys: Iterable[str], known: list[str], path: Path) -> str:
    """Returns what stands before all of these keys in a checkpoint, such as ``app.model.``."""
    wanted, names = list(keys), set(known)
    candidates = [name[: -len(wanted[0])] for name in known if name.endswith(wanted[0])]
    best = min(candidates, key=lambda start: sum(start + key not in names for key in wanted), default="")
    missing = [best + key for key in wanted if best + key not in names]
    if missing or (best and not best.endswith(".")):
        name = missing[0] if missing else best + wanted[0]
        raise SDPError(
            f"{path} is that of another model: it lacks {name!r}.{did_you_mean(name, known)} Load one of the same "
            "model; the optimizer's names must be those of get_state_dict()."
        )
    return best


def _at(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries that hold ``content`` behind a prefix."""
    result = content
    for name in reversed(prefix.split(".")[:-1]):
        result = {name: result}
    return result


def _join(target: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _join(target[key], value)
        else:
            target[key] = value
