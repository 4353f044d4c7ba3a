"""Text for language models: documents from files or from the Hugging Face Hub, packed into sequences of tokens.

Where a worker is in its documents is a position, plain data for a checkpoint: the document, and the offset in it of the
next token. A reader that begins at a position yields what the one before would have gone on with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from training import Worker

Position = Mapping[str, Any]
Document = tuple[Position, str]
T = TypeVar("T")


class Source(Protocol):
    """Documents of which the first ones are held out for validation."""

    def held_out(self) -> list[str]:
        """Returns the held-out documents, the same on all workers. Collective."""
        ...

    def documents(self, position: Position) -> Iterator[Document]:
        """Yields this worker's documents for training, endlessly, from a position on; from the first one if empty."""
        ...

    def shared(self, positions: Sequence[Position]) -> Position:
        """Returns a position for all of another number of workers, after those in a checkpoint."""
        ...


class Files:
    """The rows of parquet and JSON lines files, in the order of names. The workers deal the rows among themselves.

    So every worker reads all files, whose rows it decodes only if they are its own. Held-out are the first rows of the
    first file.
    """

    def __init__(self, folder: Path, column: str, held: int, worker: Worker) -> None:
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix in READERS)
        if not self._paths:
            raise SystemExit(f"{folder} has no files {' or '.join(f'*{suffix}' for suffix in READERS)}.")
        self._column, self._held, self._worker = column, held, worker

    def held_out(self) -> list[str]:
        return [text for _, text in self._rows(self._paths[0], range(self._held))]

    def documents(self, position: Position) -> Iterator[Document]:
        epoch, begin, first = (position[key] for key in ("epoch", "file", "row")) if position else (0, 0, self._held)
        while True:
            is_whole, found = (begin, first) == (0, self._held), False
            for number, path in enumerate(self._paths[begin:], begin):
                start = first + (self._worker.rank - number - first) % self._worker.workers
                for row, text in self._rows(path, range(start, sys.maxsize, self._worker.workers)):
                    found = True
                    yield {"epoch": epoch, "file": number, "row": row}, text
                first = 0
            if is_whole and not found:
                raise SystemExit(f"No document is left for worker {self._worker.rank}: lower --held-out or add files.")
            epoch, begin, first = epoch + 1, 0, self._held

    def shared(self, positions: Sequence[Position]) -> Position:
        """Returns the position after the document that is farthest: none is read twice, a few are left out."""
        last = max(positions, key=lambda one: (one["epoch"], one["file"], one["row"]))
        return {**last, "row": last["row"] + 1, "offset": 0}

    def _rows(self, path: Path, wanted: range) -> Iterator[tuple[int, str]]:
        try:
            for row, text in READERS[path.suffix](path, self._column, wanted):
                if not isinstance(text, str):
                    raise ValueError(f"row {row} has no text")
                yield row, text
        except (KeyError, OSError, ValueError) as error:
            raise SystemExit(f"{path} cannot be read as text of the column {self._column!r}: {error}") from None


def parquet_rows(path: Path, column: str, wanted: range) -> Iterator[tuple[int, Any]]:
    """Yields numbers and values of the wanted rows. What lies in row groups before or after them is not read."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        end = 0
        for group in range(file.num_row_groups):
            row, end = end, end + file.metadata.row_group(group).num_rows
            if end <= wanted.start or row >= wanted.stop:
                continue
            for batch in file.iter_batches(1024, row_groups=[group], columns=[column]):
                for number, value in enumerate(batch[column], row):
                    if number in wanted:
                        yield number, value.as_py()
                row += batch.num_rows


def json_rows(path: Path, column: str, wanted: range) -> Iterator[tuple[int, Any]]:
    """Yields numbers and values of the wanted lines."""
    with path.open(encoding="utf-8") as file:
        for row, line in islice(enumerate(file), wanted.start, wanted.stop, wanted.step):
            yield row, json.loads(line)[column]


READERS = {".parquet": parquet_rows, ".jsonl": json_rows}


class Hub:
    """A data set of the Hugging Face Hub, streamed. Needs the package datasets.

    Where the number of workers divides that of its files, each worker reads files of its own, otherwise every document.
    Held-out are each worker's first documents.
    """

    def __init__(self, name: str, config: str | None, split: str, column: str, held: int, worker: Worker) -> None:
        self._name, self._config, self._split, self._column = name, config, split, column
        self._held, self._worker = -(-held // worker.workers), worker

    def held_out(self) -> list[str]:
        own = [text for _, text in islice(self._examples(None), self._held)]
        texts: list[list[str]] = [[]] * self._worker.workers
        dist.all_gather_object(texts, own)
        return [text for some in texts for text in some]

    def documents(self, position: Position) -> Iterator[Document]:
        epoch, state = position.get("epoch", 0), position.get("state")
        while True:
            found, begin = state is not None, 0 if state else self._held
            for where, text in islice(self._examples(state), begin, None):
                found = True
                yield {"epoch": epoch, "state": where}, text
            if not found:
                raise SystemExit(f"No document is left for worker {self._worker.rank}: lower --held-out.")
            epoch, state = epoch + 1, None

    def shared(self, positions: Sequence[Position]) -> Position:
        raise SystemExit(f"This run streams for {len(positions)} workers: go on with as many.")

    def _examples(self, state: Any) -> Iterator[tuple[Any, str]]:
        """Yields the state before each document, and its text."""
        from datasets import load_dataset
        from datasets.distributed import split_dataset_by_node

        data = load_dataset(self._name, self._config, split=self._split, streaming=True)
        data = split_dataset_by_node(data.select_columns([self._column]), self._worker.rank, self._worker.workers)
        if state:
            data.load_state_dict(state)
        before = state
        for example in data:
            yield before, example[self._column]
            before = data.state_dict()


def encoder(path: Path, end: str) -> tuple[Callable[[str], list[int]], int, int]:
    """Reads a file of the package tokenizers.

    Args:
        path: The file, ``tokenizer.json``.
        end: The token that ends a document.

    Returns:
        What makes tokens of a document, the number of tokens, and the number of the end token.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    last = tokenizer.token_to_id(end)
    if last is None:
        raise SystemExit(f"{path} has no token {end!r}. Pass the one that ends a document as --end-token.")
    return lambda text: [*tokenizer.encode(text, add_special_tokens=False).ids, last], tokenizer.get_vocab_size(), last


def packed(
    documents: Iterable[Document], encode: Callable[[str], list[int]], length: int, offset: int = 0
) -> Iterator[tuple[Tensor, Position]]:
    """Joins documents and cuts them into sequences, which attend to all that is in them, as is usual.

    Args:
        documents: Positions and texts.
        encode: Makes tokens of a text.
        length: Tokens of a sequence.
        offset: The first token in the first document.

    Yields:
        A sequence of shape (length,), and the position after it.
    """
    held: list[int] = []
    for where, text in documents:
        tokens = encode(text)
        while offset < len(tokens):
            taken = tokens[offset : offset + length - len(held)]
            held, offset = held + taken, offset + len(taken)
            if len(held) == length:
                yield torch.tensor(held), {**where, "offset": offset}
                held = []
        offset = 0


class Batches:
    """This worker's batches for training. A thread makes the next one while the model computes.

    Attributes:
        position: Where the next batch begins.
    """

    def __init__(
        self, source: Source, encode: Callable[[str], list[int]], length: int, batch: int, position: Position
    ) -> None:
        self.position = position
        sequences = packed(source.documents(position), encode, length, position.get("offset", 0))
        self._ahead = ahead(batched(sequences, batch))

    def __next__(self) -> Tensor:
        tokens, self.position = next(self._ahead)
        return tokens


def batched(sequences: Iterator[tuple[Tensor, Position]], batch: int) -> Iterator[tuple[Tensor, Position]]:
    while some := list(islice(sequences, batch)):
        yield torch.stack([one for one, _ in some]), some[-1][1]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields endless items, each of which a thread has taken while the one before was in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items)
        while True:
            item, coming = coming.result(), pool.submit(next, items)
            yield item
