"""What feeds language models: every document once, and the same tokens from any position on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes.running import part
from tests.recipes.texts import DOCUMENTS, write_texts

documents = part("documents")
HELD = 10


def worker(rank: int, workers: int) -> Any:
    return part("training").Worker(rank, workers, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def source(folder: Path, name: str, rank: int = 0, workers: int = 1) -> Any:
    if name == "hub":
        return documents.Hub(str(folder / "parquet"), None, "train", "text", HELD, worker(rank, workers))
    return documents.Files(folder / name, "text", HELD, worker(rank, workers))


def epochs(folder: Path, name: str, rank: int, workers: int, position: Mapping[str, Any], last: int) -> list[str]:
    """A worker's documents until an epoch ends."""
    result = []
    for where, text in source(folder, name, rank, workers).documents(position):
        if where["epoch"] > last:
            return result
        result.append(text)
    raise AssertionError("Documents for training have no end.")


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", ["parquet", "jsonl"])
def test_that_workers_share_each_document_once_per_epoch(name: str, workers: int, folder: Path) -> None:
    assert source(folder, name).held_out() == DOCUMENTS[:HELD]
    parts = [epochs(folder, name, rank, workers, {}, 1) for rank in range(workers)]
    assert sorted(text for some in parts for text in some) == sorted(2 * DOCUMENTS[HELD:])
    assert max(map(len, parts)) - min(map(len, parts)) <= 2 * 3  # at most one per file and epoch


@pytest.mark.parametrize("workers", [2, 3])
def test_that_the_hub_gives_each_document_to_one_worker(workers: int, folder: Path) -> None:
    """Three files: two workers take every second document, three a file each. The first of each are held out."""
    held = [
        text
        for rank in range(workers)
        for _, text in islice(source(folder, "hub", rank, workers)._examples(None), -(-HELD // workers))
    ]
    parts = [epochs(folder, "hub", rank, workers, {}, 1) for rank in range(workers)]
    assert sorted(text for some in parts for text in some) == sorted(2 * [one for one in DOCUMENTS if one not in held])


@pytest.mark.parametrize("rank, workers", [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("name", ["parquet", "jsonl", "hub"])
def test_that_reading_goes_on_from_any_position(name: str, rank: int, workers: int, folder: Path) -> None:
    """The oracle is a reader that was never interrupted, over two epochs."""
    encode, _, _ = documents.encoder(folder / "tokenizer.json", "</s>")

    def batches(position: Mapping[str, Any]) -> Any:
        return documents.Batches(source(folder, name, rank, workers), encode, 33, 2, position)

    total = sum(len(encode(text)) for text in epochs(folder, name, rank, workers, {}, 1)) // 66
    whole, expected, positions = batches({}), [], []
    for _ in range(total):
        positions.append(whole.position)
        expected.append(next(whole))
    assert positions[-1]["epoch"] == 1
    for begin in range(0, total, max(1, total // 8)):
        again = batches(positions[begin])
        for batch in expected[begin : begin + 5]:
            assert torch.equal(next(again), batch)


def test_that_sequences_are_the_documents_tokens(folder: Path) -> None:
    encode, vocabulary, end = documents.encoder(folder / "tokenizer.json", "</s>")
    tokens = [token for text in DOCUMENTS for token in encode(text)]
    assert tokens.count(end) == len(DOCUMENTS) and max(tokens) < vocabulary
    found = [one for one, _ in documents.packed((({}, text) for text in DOCUMENTS), encode, 7)]
    assert torch.cat(found).tolist() == tokens[: len(tokens) // 7 * 7]


@pytest.mark.parametrize("before, after", [(2, 1), (2, 3), (3, 2)])
def test_that_another_number_of_workers_reads_no_document_again(before: int, after: int, folder: Path) -> None:
    seen, positions = list[str](), list[Mapping[str, Any]]()
    for rank in range(before):
        some = list(islice(source(folder, "jsonl", rank, before).documents({}), 20 + 3 * rank))
        seen += [text for _, text in some]
        positions.append({**some[-1][0], "offset": 5})
    shared = source(folder, "jsonl").shared(positions)
    later = [text for rank in range(after) for text in epochs(folder, "jsonl", rank, after, shared, 0)]
    assert not {*seen} & {*later}
    assert len(DOCUMENTS) - HELD - len(seen) - len(later) <= 3 * before  # left out: what slower workers had not read
    with pytest.raises(SystemExit, match="go on with as many"):
        source(folder, "hub").shared(positions)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    def read(column: str = "text", held: int = 0) -> None:
        next(documents.Files(tmp_path, column, held, worker(0, 1)).documents({}))

    with pytest.raises(SystemExit, match="has no files"):
        read()
    whole = (folder / "parquet" / "000.parquet").read_bytes()
    (tmp_path / "one.parquet").write_bytes(whole)
    with pytest.raises(SystemExit, match="text of the column 'body'"):
        read(column="body")
    with pytest.raises(SystemExit, match="row 0 has no text"):
        read(column="id")
    with pytest.raises(SystemExit, match="No document is left for worker 0"):
        read(held=1000)
    (tmp_path / "one.parquet").write_bytes(whole[:-20])
    with pytest.raises(SystemExit, match=r"one\.parquet cannot be read"):
        read()
    (tmp_path / "one.parquet").unlink()
    for line in ('{"body": "a"}\n', '{"text": null}\n', '{"text": "a\n'):
        (tmp_path / "one.jsonl").write_text(line)
        with pytest.raises(SystemExit, match=r"one\.jsonl cannot be read"):
            read()
    with pytest.raises(SystemExit, match="has no token '<eos>'"):
        documents.encoder(folder / "tokenizer.json", "<eos>")
