"""Language models of bytes: the source of the standard library, or documents of your own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.study.tasks.base import Batch, Part, Shape, Task
from sdp_compile.train.corpus import Corpus, load_corpus

_HELD_OUT = 16  # one document in this many


@dataclass(frozen=True)
class Text(Task):
    """Bytes of the standard library's source, and a GPT.

    Args:
        layers, width, heads, hidden, sequence: Sizes of the GPT.
        bytes: How much text is read; less makes training repeat it.
        windows: How many windows of each held-out part are evaluated.
    """

    name: ClassVar[str] = "text"
    layers: int = 3
    width: int = 48
    heads: int = 4
    hidden: int = 192
    sequence: int = 48
    bytes: int = 8_000_000
    windows: int = 256

    def __post_init__(self) -> None:
        if self.width < self.heads:
            raise SDPError(f"width={self.width} is too small for heads={self.heads}: each head needs a width of 1.")
        corpus = self._corpus()
        needed = 2 * self.windows * self.sequence + 1  # so that windows of one part share no byte with the other's
        if len(corpus.validation) < needed or len(corpus.training) <= self.sequence:
            raise SDPError(
                f"{len(corpus.training)} bytes of text are for training and {len(corpus.validation)} held out, but "
                f"windows={self.windows} of sequence={self.sequence} bytes in each of two parts need {needed}. "
                f"Raise bytes={self.bytes}, give more text, or lower the others."
            )
        object.__setattr__(self, "_training", _as_tensor(corpus.training))
        object.__setattr__(self, "_held_out", _as_tensor(corpus.validation))

    def build(self, shape: Shape) -> nn.Module:
        whole = GPTConfig(self.layers, self.width, self.heads, self.hidden, sequence=self.sequence)
        return GPT(replace(whole.smaller(shape.share), dropout=shape.dropout, drop_branch=shape.drop_branch))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        text: Tensor = vars(self)["_training"]
        return self._windows(text, torch.randint(len(text) - self.sequence, (count,), generator=generator))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, part: Part) -> dict[str, float]:
        text: Tensor = vars(self)["_held_out"]
        starts = torch.linspace(0, len(text) - self.sequence - 1, 2 * self.windows).long()
        mine = starts[0 if part == "tuning" else 1 :: 2]
        total = sum(float(self.loss(model, self._windows(text, some))) * len(some) for some in mine.split(64))
        return {"loss": total / len(mine)}

    def _corpus(self) -> Corpus:
        return load_corpus(self.bytes)

    def _windows(self, text: Tensor, starts: Tensor) -> Batch:
        windows = text[starts[:, None] + torch.arange(self.sequence + 1)].long()
        return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class Documents(Text):
    """Bytes of the documents of parquet or JSON lines files, such as FineWeb's or OpenWebText's, and a GPT.

    Documents are read in the order of files' names until there are enough; each sixteenth is held out.

    Args:
        folder: The folder with ``*.parquet`` or ``*.jsonl`` files, at any depth.
        column: The column with the text.
    """

    name: ClassVar[str] = "documents"
    folder: str = ""
    column: str = "text"

    def _corpus(self) -> Corpus:
        folder = Path(self.folder).expanduser()
        paths = sorted(path for path in folder.rglob("*") if path.suffix in _READERS) if self.folder else []
        if not paths:
            raise SDPError(
                f"folder={self.folder!r} has no files {' or '.join(f'*{suffix}' for suffix in _READERS)}. The option "
                "folder of the task 'documents' names the folder of a data set with a column of text."
            )
        parts: tuple[list[Any], list[Any]] = ([], [])
        size = number = 0
        for number, document in enumerate(_documents(paths, self.column), 1):
            parts[number % _HELD_OUT == 0].append(document)
            size += len(document)
            if size >= self.bytes:
                break
        return Corpus(b"\n\n".join(parts[0]), b"\n\n".join(parts[1]), number)


def _documents(paths: Iterable[Path], column: str) -> Iterator[bytes]:
    for path in paths:
        try:
            for text in _READERS[path.suffix](path, column):
                if not isinstance(text, str):
                    raise ValueError(f"it has {type(text).__name__} instead of text")
                yield text.encode()
        except (KeyError, TypeError, OSError, ValueError) as error:
            raise SDPError(f"{path} cannot be read as text of the column {column!r}: {error}.") from None


def _of_parquet(path: Path, column: str) -> Iterator[Any]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SDPError(f"{path} needs pyarrow. Install it with: pip install pyarrow") from None
    with ParquetFile(path) as file:
        for batch in file.iter_batches(1024, columns=[column]):
            yield from batch[column].to_pylist()


def _of_lines(path: Path, column: str) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)[column]


_READERS = {".parquet": _of_parquet, ".jsonl": _of_lines}


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
