"""Where recipes log: a file of JSON lines, and TensorBoard, trackio or wandb by the same call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol


class Log(Protocol):
    """Takes figures of a step; wandb's and trackio's runs do so as they are."""

    def log(self, data: Mapping[str, float], step: int) -> object: ...


class Lines:
    """Appends a JSON line per step to a file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"

    def log(self, data: Mapping[str, float], step: int) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **data}) + "\n")


class TensorBoard:
    """Writes what TensorBoard shows; needs tensorboard."""

    def __init__(self, folder: Path) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def log(self, data: Mapping[str, float], step: int) -> None:
        for name, value in data.items():
            self._writer.add_scalar(name, value, step)


def open_logs(folder: Path, names: list[str]) -> list[Log]:
    """Opens logs by name: "tensorboard", "wandb", "trackio". The file of JSON lines is always there."""
    logs: list[Log] = [Lines(folder)]
    for name in names:
        if name == "tensorboard":
            logs.append(TensorBoard(folder))
        else:
            logs.append(import_module(name).init(project="sdp-compile", name=folder.name))
    return logs
