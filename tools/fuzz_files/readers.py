"""What reads each kind of input, as a user would call it."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import sdp_compile as sdp
from sdp_compile.capture import capture
from sdp_compile.checkpoint.coverage import check_model, check_states
from sdp_compile.checkpoint.manifest import FORMAT, _digest
from sdp_compile.checkpoint.merge import merge
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.checkpoint.units import blocks_of, layouts_of
from sdp_compile.cli.main import app
from sdp_compile.errors import SDPError
from sdp_compile.passes import resolve_pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.regions import full
from sdp_compile.policies import resolve_policy
from sdp_compile.runtime.state.weights import open_weights
from sdp_compile.structure.analysis import Analysis, analyse
from tools.fuzz_files import inputs
from tools.fuzz_files.guard import Forbidden, guarded

MOST_WORDS = 5000
"""The longest error message."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


@dataclass(frozen=True)
class Readers:
    """Reads inputs in a folder.

    Args:
        folder: An empty folder.
    """

    folder: Path

    @cached_property
    def kinds(self) -> Mapping[str, tuple[st.SearchStrategy[Any], Callable[[Any], str]]]:
        """The strategy and the reader of each kind of input; a reader returns what became of it."""
        header = (self.folder / "weights.safetensors").read_bytes()
        document = self._manifest["checkpoint"]
        private = json.loads((self._place / "worker-0.json").read_text())
        return {
            "policy": (inputs.documents(inputs.POLICY), self._policy),
            "passes": (inputs.documents(inputs.PASSES), self._passes),
            "manifest": (inputs.changed(document), self._changed_manifest),
            "manifest-bytes": (inputs.edited(json.dumps(self._manifest).encode()), self._edited_manifest),
            "private": (inputs.changed(private), self._private),
            "weights": (inputs.edited(header), self._weights),
            "index": (inputs.changed({"weight_map": dict.fromkeys(self._names, "weights.safetensors")}), self._index),
            "command": (inputs.command_lines(), self._command),
        }

    def prepare(self) -> None:
        """Writes valid files, and calls everything once, so that all modules are there."""
        made = model()
        optimizer = torch.optim.AdamW(made.parameters())
        made(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        sdp.save_checkpoint(self._place.parent, made, optimizer, step=1, extra={"best": (1, 2.5)})
        save_file(made.state_dict(), self.folder / "weights.safetensors")
        plan = sdp.plan(made, "neuron", (torch.ones(2, 6),), workers=4)
        body = self._manifest["checkpoint"]
        body["plan"] = {
            "digest": plan.digest,
            "slices": ["a"],
            "policy": {},
            "masking": "forward",
            "lowering": "sliced",
            "layouts": {key: [one.model_dump(mode="json") for one in value] for key, value in layouts_of(plan).items()},
            "blocks": blocks_of(plan),
        }
        self._changed_manifest(body)
        self._policy(inputs.POLICY.encode())
        self._weights((self.folder / "weights.safetensors").read_bytes())
        for command in inputs.COMMANDS:
            self._command([command, "torchvision:no"])

    def read(self, kind: str, value: Any) -> str:
        """Reads one input, guarded. Returns ``"read"`` or ``"refused"``; raises what is neither."""
        with guarded(self.folder, may_load=kind == "command"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self.kinds[kind][1](value)
            except SDPError as error:
                if len(str(error)) > MOST_WORDS:
                    raise Forbidden(f"an error message of {len(str(error))} characters") from error
                return "refused"

    # -- readers -------------------------------------------------------------------------------------------------

    def _policy(self, content: bytes) -> str:
        path = self.folder / "policy.toml"
        path.write_bytes(content)
        policy = resolve_policy(path)
        policy.describe()
        make_plan(self._analysis, policy, 4)
        return "read"

    def _passes(self, content: bytes) -> str:
        path = self.folder / "passes.toml"
        path.write_bytes(content)
        resolve_pipeline(str(path))
        return "read"

    def _changed_manifest(self, body: Any) -> str:
        text = json.dumps({"format": FORMAT, "digest": _digest(body), "checkpoint": body})
        return self._edited_manifest(text.encode("utf-8", "surrogatepass"))

    def _edited_manifest(self, content: bytes) -> str:
        (self._place / "manifest.json").write_bytes(content)
        return self._load()

    def _private(self, content: Any) -> str:
        text = json.dumps(content).encode("utf-8", "surrogatepass")
        place = self._place / "worker-0.json"
        before = place.read_bytes()
        document = json.loads(json.dumps(self._manifest))
        for file in document["checkpoint"]["files"]:
            if file["name"] == "worker-0.json":
                file.update(nbytes=len(text), crc=zlib.crc32(text))
        place.write_bytes(text)
        try:
            return self._changed_manifest(document["checkpoint"])
        finally:
            place.write_bytes(before)

    def _load(self) -> str:
        checkpoint = Checkpoint(self._place)
        lacking = Checkpoint(self._place)
        lacking.problems = dict.fromkeys(range(len(lacking.manifest.files)), "missing")
        for check in (lambda: check_model(lacking), lambda: check_states(lacking, False, "")):
            try:
                check()
            except SDPError as error:
                assert len(str(error)) < MOST_WORDS
        merge(checkpoint.path, self.folder / "merged.safetensors", reset_lost_optimizer_state=True)
        made = model()
        sdp.load_checkpoint(self._place, made, torch.optim.AdamW(made.parameters()))
        return "read"

    def _weights(self, content: bytes) -> str:
        path = self.folder / "edited.safetensors"
        path.write_bytes(content)
        return self._read_weights(path)

    def _index(self, content: Any) -> str:
        path = self.folder / "weights.safetensors.index.json"
        path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
        return self._read_weights(path)

    def _read_weights(self, path: Path) -> str:
        weights = open_weights(path)
        for name, value in model().state_dict().items():
            if name in weights:
                weights.read(name, tuple(value.shape), full(tuple(value.shape)))
        return "read"

    def _command(self, arguments: list[str]) -> str:
        # What a user names as an output is written, so no word may lead out of the folder.
        safe = [word.replace("/", "_").replace("..", "_") for word in arguments]
        with _within(self.folder), patch("sdp_compile.cli.train.launch_again", _no_launch):
            result = CliRunner().invoke(app, safe)
        error = result.exception
        if error is not None and not isinstance(error, SystemExit):
            raise error
        if "unexpected " in result.output and "This is a bug in" in result.output.replace("\n", " "):
            raise Forbidden(f"{safe}: {result.output[-400:]}")
        return "read" if result.exit_code == 0 else "refused"

    # -- files ---------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> Path:
        return self.folder / "checkpoints" / "step-00000001"

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._place / "manifest.json").read_text())
        return found

    @cached_property
    def _names(self) -> list[str]:
        return list(model().state_dict())

    @cached_property
    def _analysis(self) -> Analysis:
        return analyse(capture(model(), (torch.ones(2, 6),)))


def _no_launch(*_: Any, **__: Any) -> int:
    raise Forbidden("workers were started")


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
