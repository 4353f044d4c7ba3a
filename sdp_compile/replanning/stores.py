"""Where the tiles of full tensors lie on this worker: in its tensors, or in the shards of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.moves import Tile
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.gradients.shard_layout import ShardLayout
from sdp_compile.runtime.sharding.shards import Shard
from sdp_compile.structure.layout import Indices

Placed = tuple[Tensor, Sequence[Indices]]
"""A tensor, and where the indices of a tile lie along each of its dimensions."""


class Store(Protocol):
    """One full tensor, as far as this worker holds it."""

    def place(self, tile: Tile) -> Placed:
        """Returns where a tile lies that this worker holds."""
        ...


class Slices:
    """A tensor that lies in this worker's slices.

    Args:
        holdings: Where the slices lie in the full tensors.
        tensors: The slices by name; of an optimizer's state only that of its parameter.
    """

    def __init__(self, holdings: Holdings, tensors: Mapping[str, Tensor]) -> None:
        self._holdings, self._tensors = holdings, tensors

    def place(self, tile: Tile) -> Placed:
        piece = tile.piece
        if is_member(self._holdings.rank, piece.owners):
            return self._tensors[piece.name], self._holdings.region(piece).index
        name, region = self._holdings.place_of_unowned(piece)
        return self._tensors[name], region.index


class Shards:
    """A state of an optimizer that lies in this worker's shards.

    Args:
        places: Where the shards lie.
        values: The state of each shard, by its parameter.
        whole: The store for parameters that are not split.
    """

    def __init__(self, places: ShardPlaces, values: Mapping[Tensor, Tensor], whole: Store) -> None:
        self._places, self._values, self._whole = places, values, whole

    def place(self, tile: Tile) -> Placed:
        shard = self._places.find(tile)
        if shard is None:
            return self._whole.place(tile)
        size = tuple(map(len, tile.index))
        start, numel = (tile.start or 0) - shard.start, int(np.prod(size, dtype=np.int64))
        view = self._values[shard.parameter].reshape(-1)[start : start + numel].reshape(size)
        return view, [np.arange(extent, dtype=np.int64) for extent in size]


class ShardPlaces:
    """Finds the shards of a layout.

    Args:
        layout: The layout.
        holdings: Which tensors its worker holds.
        buckets: The buckets of that worker.
    """

    def __init__(self, layout: ShardLayout, holdings: Holdings, buckets: Sequence[Bucket]) -> None:
        self._shards: dict[int, list[Shard]] = {}
        plan, rank = holdings.plan, holdings.rank
        lots: list[tuple[Sequence[Piece], Sequence[tuple[str, Region]], Sequence[Shard]]] = [
            (bucket.pieces, own.pieces, [shard for _, shard in own.shards])
            for bucket in buckets
            if (own := layout.buckets.get(bucket.number)) is not None
        ]
        for name, own in layout.alone.items():
            alone = [piece for piece in plan.pieces(name) if piece.owners == (rank,) and piece.numel]
            lots.append((alone, own.pieces, [shard for _, shard in own.shards]))
        for pieces, regions, shards in lots:
            by_region = {id(region): piece for piece, (_, region) in zip(pieces, regions, strict=True)}
            for shard in shards:
                self._shards.setdefault(id(by_region[id(shard.region)]), []).append(shard)

    def find(self, tile: Tile) -> Shard | None:
        """Returns the shard that a tile lies in; None if its parameter is not split."""
        start = tile.start or 0
        found = self._shards.get(id(tile.piece), ())
        return next((shard for shard in found if shard.start <= start < shard.stop), None)


def part(store: Store, tile: Tile, index: Sequence[Indices]) -> tuple[Tensor, Region]:
    """Returns the tensor that holds a part of a tile, and where in it.

    Args:
        store: What holds the tile.
        tile: The tile.
        index: The indices of the full tensor, all of them in the tile.
    """
    tensor, local = store.place(tile)
    chosen = [
        own if wanted is full else own[np.searchsorted(full, wanted)]
        for own, full, wanted in zip(local, tile.index, index, strict=True)
    ]
    return tensor.detach(), Region(chosen)


def as_bytes(values: Tensor, device: torch.device) -> Tensor:
    """Returns values as bytes on a device, because every dtype travels so."""
    return values.to(device).contiguous().reshape(-1).view(torch.uint8)
