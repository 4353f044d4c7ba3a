"""Small text data in the formats of real ones: shards of parquet and of JSON lines, and a tokenizer trained on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

_WORDS = "the a subnetwork worker trains owns shares unit model gradient of and to in".split()
_RANDOM = random.Random(0)

DOCUMENTS = [f"{number} " + " ".join(_RANDOM.choices(_WORDS, k=_RANDOM.randint(3, 60))) for number in range(110)]


def write_texts(folder: Path) -> Path:
    """Writes DOCUMENTS as three shards of uneven size into ``parquet`` and into ``jsonl``, and ``tokenizer.json``."""
    for number, (begin, end) in enumerate([(0, 40), (40, 71), (71, 110)]):
        for name in ("parquet", "jsonl"):
            (folder / name).mkdir(exist_ok=True)
        texts = DOCUMENTS[begin:end]
        table = pyarrow.table({"text": texts, "id": range(begin, end)})
        pyarrow.parquet.write_table(table, folder / "parquet" / f"{number:03}.parquet", row_group_size=13)
        lines = (json.dumps({"text": text, "id": begin + row}) + "\n" for row, text in enumerate(texts))
        (folder / "jsonl" / f"{number:03}.jsonl").write_text("".join(lines))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
