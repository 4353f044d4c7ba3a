"""Models as checkpoints see them: which parts of the full tensors this process holds, and which it writes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from sdp_compile.capture.clone import canonical_names
from sdp_compile.checkpoint.manifest import DTYPES
from sdp_compile.errors import SDPError
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.regions import Region, full
from sdp_compile.runtime.peers import Peers
from sdp_compile.runtime.subnetwork import Subnetwork, compiled_within, require_peers, skeleton_of
from sdp_compile.runtime.tensors import local_tensors
from sdp_compile.structure.layout import Indices

_LEAST_BYTES = 2**20
"""The least size of a part of a piece that several workers write."""


@dataclass(frozen=True, eq=False)
class Share:
    """A piece of a full tensor that this worker holds.

    Attributes:
        name: The full tensor.
        index: The indices of the full tensor along each dimension.
        local: Where they lie in this worker's tensor; None for elements that nobody owns, which count as zeros.
        writer: The worker that writes it.
    """

    name: str
    index: Sequence[Indices]
    local: Sequence[Indices] | None
    writer: int


class Model(ABC):
    """What a checkpoint needs of a model.

    Attributes:
        rank: This worker.
        workers: The number of workers.
        peers: The connection to the others, if there are any.
        shapes: The shapes of the full parameters and persistent buffers by canonical name.
    """

    rank: int = 0
    workers: int = 1
    peers: Peers | None = None
    shapes: Mapping[str, tuple[int, ...]]
    module: nn.Module

    @cached_property
    @abstractmethod
    def keys(self) -> Mapping[str, str]:
        """The canonical name of each key of the original's ``state_dict()``."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns what this worker holds of the model, by name."""

    @abstractmethod
    def held(self) -> Iterator[tuple[str, str, Region]]:
        """Yields each of these tensors: its name, the full tensor, and where it lies in that."""

    def has_lone_owners(self, name: str) -> bool:
        """Whether a worker has a part of a parameter alone."""
        return False

    @abstractmethod
    def region_of(self, name: str) -> Region | None:
        """Returns where this worker's tensor lies in the full one; None if it holds nothing of it."""

    @abstractmethod
    def shares(self, name: str) -> Iterator[Share]:
        """Yields the pieces of a full tensor that this worker holds."""

    @cached_property
    def parameters(self) -> dict[Tensor, str]:
        """The canonical names of this worker's parameters, in the order of the original."""
        held = dict(self.module.named_parameters(remove_duplicate=False))
        return {held[name]: name for name in self.shapes if name in held}


class CompiledModel(Model):
    """A worker's subnetwork.

    Args:
        module: The compiled module.
        what: The call that needs its peers, for errors.
    """

    module: Subnetwork

    def __init__(self, module: Subnetwork, what: str) -> None:
        self.module, self.peers = module, require_peers(module, what)
        self.rank, self.workers = module.rank, module.workers
        state = module.plan.state
        self.shapes = {name: one.shape for name, one in state.items() if one.kind != "constant" and one.persistent}

    @cached_property
    def keys(self) -> Mapping[str, str]:
        return _keys(skeleton_of(self.module), self.module.plan.aliases, self.shapes)

    def tensors(self) -> dict[str, Tensor]:
        return local_tensors(self.module)

    def held(self) -> Iterator[tuple[str, str, Region]]:
        return ((one.name, one.source, one.region) for one in self.module.holdings.held() if one.source in self.shapes)

    def has_lone_owners(self, name: str) -> bool:
        return any(len(piece.owners) == 1 for piece in self.module.plan.pieces(name) if piece.numel)

    def region_of(self, name: str) -> Region | None:
        return self.module.holdings.region_of(name)

    def shares(self, name: str) -> Iterator[Share]:
        for piece, writer in self._writers[name]:
            if is_member(self.rank, piece.owners):
                yield Share(name, piece.index, self.module.holdings.region(piece).index, writer)
            elif not piece.owners and self.rank == writer:
                yield Share(name, piece.index, None, writer)

    @cached_property
    def _writers(self) -> dict[str, list[tuple[Piece, int]]]:
        """The worker that writes each piece: the owner that has least to write, the same for all states of a piece."""
        plan, load = self.module.plan, [0] * self.workers
        pieces = [part for name in self.shapes for piece in plan.pieces(name) for part in self._parts(piece)]
        chosen: dict[int, int] = {}
        for piece in sorted(pieces, key=lambda piece: -piece.numel):
            state = plan.state[piece.name]
            if state.kind == "parameter" and piece.owners:
                writer = min(piece.owners, key=lambda worker: (load[worker], worker))
            else:  # other buffers may differ between workers, and the first one's count
                writer = piece.owners[0] if piece.owners else 0
            load[writer] += piece.numel * state.dtype.itemsize
            chosen[id(piece)] = writer
        result: dict[str, list[tuple[Piece, int]]] = {name: [] for name in self.shapes}
        for piece in pieces:
            result[piece.name].append((piece, chosen[id(piece)]))
        return result

    def _parts(self, piece: Piece) -> Iterator[Piece]:
        """Yields a piece; a large one in parts of about equal size along its longest dimension, one per owner."""
        state = self.module.plan.state[piece.name]
        if not piece.numel:
            return
        dim = max(range(len(piece.shape)), key=lambda dim: (piece.shape[dim], -dim), default=0)
        wanted = min(len(piece.owners), piece.numel * state.dtype.itemsize // _LEAST_BYTES, *piece.shape[dim : dim + 1])
        if wanted < 2 or state.kind != "parameter":
            yield piece
            return
        for index in np.array_split(piece.index[dim], wanted):
            yield Piece(piece.name, piece.owners, (*piece.index[:dim], index, *piece.index[dim + 1 :]))


class DenseModel(Model):
    """A model that was not compiled, all of which this process holds."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        names, tensors = canonical_names(module), local_tensors(module)
        left_out = {
            f"{path}.{name}".lstrip(".")
            for path, part in module.named_modules(remove_duplicate=False)
            for name in part._non_persistent_buffers_set
        }
        kept = [names[name] for name in tensors if name not in left_out]
        self.shapes = {name: tuple(tensors[name].shape) for name in dict.fromkeys(kept)}

    @cached_property
    def keys(self) -> Mapping[str, str]:
        return _keys(self.module, canonical_names(self.module), self.shapes)

    def tensors(self) -> dict[str, Tensor]:
        return local_tensors(self.module)

    def held(self) -> Iterator[tuple[str, str, Region]]:
        return ((name, name, full(shape)) for name, shape in self.shapes.items())

    def region_of(self, name: str) -> Region | None:
        return full(self.shapes[name])

    def shares(self, name: str) -> Iterator[Share]:
        index = full(self.shapes[name]).index
        yield Share(name, index, index, 0)


def model_of(model: nn.Module, what: str) -> Model:
    """Returns a model as checkpoints see it.

    Args:
        model: A compiled module or another model, perhaps in the wrapper of ``torch.compile``.
        what: The call, for errors.

    Raises:
        SDPError: If it is no model, holds tensors that are distributed in another way, or is on the meta device.
        DistributedError: If it has peers, but there is no process group.
    """
    if not isinstance(model, nn.Module):
        raise SDPError(f"{what} takes a model, got {type(model).__name__}.")
    compiled = compiled_within(model)
    found = DenseModel(model._modules.get("_orig_mod") or model) if compiled is None else CompiledModel(compiled, what)
    saved = {name for name, *_ in found.held()}
    for name, tensor in found.tensors().items():
        if tensor.is_meta:
            raise SDPError(
                f"{name!r} is on the meta device and has no values yet. Materialize the model before {what}."
            )
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise SDPError(
                f"{name!r} is a {type(tensor).__name__}, which is distributed or stored in another way. Use "
                "torch.distributed.checkpoint for this model; it reads and writes the same checkpoints."
            )
        is_plain = str(tensor.dtype).removeprefix("torch.") in DTYPES and tensor.layout == torch.strided
        if name in saved and not is_plain:
            raise SDPError(
                f"{name!r} is {str(tensor.dtype).removeprefix('torch.')} ({tensor.layout}), which a checkpoint cannot "
                f"hold: its values are not all that it is. Convert it to a plain tensor before {what}."
            )
    return found


def _keys(model: nn.Module, aliases: Mapping[str, str], known: Mapping[str, object]) -> dict[str, str]:
    """Returns the canonical name behind each key of a model's ``state_dict()``, also where hooks choose the keys.

    Where hooks choose other values, the keys are the canonical names.
    """
    names = {id(tensor): aliases.get(name, name) for name, tensor in local_tensors(model).items()}
    kept = model.state_dict(keep_vars=True)
    keys = {key: names.get(id(value), "") for key, value in kept.items() if key.rpartition(".")[2] != "_extra_state"}
    if all(name in known for name in keys.values()):
        return keys
    strange = [key for key, name in keys.items() if name not in known]
    warnings.warn(
        f"state_dict() of the model has entries that are none of its parameters and buffers ({strange[0]!r}). The "
        "checkpoint holds parameters and buffers under their own names: sdp.load_checkpoint() reads it, and "
        "torch.distributed.checkpoint cannot read it into the original model.",
        stacklevel=2,
    )
    return {name: name for name in known}
