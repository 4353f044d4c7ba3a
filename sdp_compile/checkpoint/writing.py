"""Writes a worker's files, and puts the workers' files together to a checkpoint."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import get_crc32_options

from sdp_compile.checkpoint.items import Item
from sdp_compile.checkpoint.manifest import MOST_BYTES, Chunk, Data, File, Manifest, data_name, dumps, private_name
from sdp_compile.errors import SDPError

ITEM_BYTES = 2048
"""About how many bytes each part of a tensor takes besides values: what ``torch.save`` adds, and its descriptions."""

_LOCAL_HEADER = 30
"""Bytes of a zip entry's header before its name and extra field, whose lengths are the last four of them."""


class WrittenChunk(Data):
    """A part of a tensor that a worker has written, by the key of its `Item`."""

    key: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    chunk: Chunk


class Written(Data):
    """What a worker has written, for worker 0.

    Attributes:
        files: Its files.
        chunks: Its parts of tensors; their files are positions in ``files``.
        objects: First byte and length of other values in the first file, by name.
    """

    files: tuple[File, ...]
    chunks: tuple[WrittenChunk, ...]
    objects: dict[str, tuple[int, int]]


def write_worker(
    folder: Path,
    worker: int,
    items: Iterable[Item],
    objects: Mapping[str, Any],
    private: Any,
    on_item: Callable[[], None] = lambda: None,
) -> None:
    """Writes what one worker writes of a checkpoint, and a description of it for worker 0.

    Values lie in the file as ``torch.save`` writes them, because that is what torch.distributed.checkpoint reads, and
    the description says where the plain bytes are, so that we need no pickle.

    Args:
        folder: The checkpoint.
        worker: This worker.
        items: Its parts of tensors.
        objects: Values that only torch.distributed.checkpoint reads, by name.
        private: What only this worker has, encoded.
        on_item: Called after each part.
    """
    chunks = []
    places: dict[str, tuple[int, int]] = {}
    with _synced(folder / data_name(worker)) as file:
        for item in items:
            dtype = str(item.dtype).removeprefix("torch.")
            chunks.append(WrittenChunk(key=item.key, dtype=dtype, shape=item.shape, chunk=_write(file, item)))
            on_item()
        for name, value in objects.items():
            start = file.tell()
            torch.save(value, file)
            places[name] = (start, file.tell() - start)
        size = file.tell()
    text = json.dumps(private).encode()
    write_bytes(folder / private_name(worker), text)
    files = (
        File(name=data_name(worker), worker=worker, nbytes=size),
        File(name=private_name(worker), worker=worker, nbytes=len(text), crc=zlib.crc32(text)),
    )
    written = Written(files=files, chunks=tuple(chunks), objects=places)
    (folder / _part_name(worker)).write_text(written.model_dump_json())


def read_written(folder: Path, workers: int) -> list[Written]:
    """Returns what the workers have written, by worker, and removes their descriptions."""
    return [Written.model_validate_json(read_part(folder, worker)) for worker in range(workers)]


def read_part(folder: Path, worker: int) -> str:
    """Returns the text that describes what one worker has written, and removes it."""
    path = folder / _part_name(worker)
    text = path.read_text()
    path.unlink()
    return text


def described(manifest: Manifest) -> str:
    """Returns the text of the file without which a folder is no checkpoint.

    Raises:
        SDPError: If it could not be read again.
    """
    text = dumps(manifest)
    if len(text) > MOST_BYTES:
        chunks = sum(len(entry.chunks) for _, entry in manifest.tensors())
        raise SDPError(
            f"The checkpoint has {chunks} parts of tensors, whose description of {len(text)} bytes is larger than "
            "any that is read. Cut the model in fewer places: by the `cyclic` or `nested` design, or a larger `align`."
        )
    return text


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and waits until it has reached the disk."""
    with _synced(path) as file:
        file.write(content)


def _write(file: BinaryIO, item: Item) -> Chunk:
    """Appends an item's values to a file."""
    values = _on_host(item.read())
    if values.numel() != item.box.numel or values.dtype != item.dtype:
        raise SDPError(
            f"{item.key[1]!r} changed while it was saved: {list(values.shape)} of {values.dtype} instead of "
            f"{list(item.box.sizes)} of {item.dtype}. Save between two steps."
        )
    buffer = io.BytesIO()
    torch.save(values.reshape(item.box.sizes), buffer)
    blob, begin = buffer.getbuffer(), file.tell()
    start, crc = _place_of_values(buffer)
    if not get_crc32_options():  # what the archive says is no checksum
        crc = zlib.crc32(blob[start : start + item.nbytes])
    chunk = Chunk(
        file=0,
        offsets=item.box.offsets,
        sizes=item.box.sizes,
        start=begin + start,
        nbytes=item.nbytes,
        crc=crc,
        blob=(begin, len(blob)),
    )
    file.write(blob)
    return chunk


def _on_host(values: Tensor) -> Tensor:
    """Returns values in memory of the host that holds nothing else."""
    values = values.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def _place_of_values(buffer: io.BytesIO) -> tuple[int, int]:
    """Returns where the values lie in what ``torch.save`` wrote of a tensor, and their checksum."""
    with zipfile.ZipFile(buffer) as archive:
        (entry,) = (one for one in archive.infolist() if one.filename.endswith("/data/0"))
    assert entry.compress_type == zipfile.ZIP_STORED
    header = buffer.getbuffer()[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return entry.header_offset + _LOCAL_HEADER + name + extra, entry.CRC


def _part_name(worker: int) -> str:
    return f"part-{worker}.json"


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """A new file, which has reached the disk afterwards."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
