"""The training text: the same on every call, from files of the standard library, split by file."""

import json
import sysconfig
from pathlib import Path

import pytest

from sdp_compile.errors import SDPError
from sdp_compile.train.corpus import load_corpus


def test_it_is_the_standard_library() -> None:
    corpus = load_corpus(limit=10**9)
    both = corpus.training + corpus.validation
    assert Path(json.__file__).read_bytes() in both
    assert (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes() in both
    assert Path(pytest.__file__).read_bytes() not in both


def test_limit_and_shares() -> None:
    corpus = load_corpus(limit=2_000_000)
    size = len(corpus.training) + len(corpus.validation)
    assert 2_000_000 <= size < 4_000_000  # the last file is taken whole
    assert 0.02 < len(corpus.validation) / size < 0.2


def test_same_text_on_every_call_whatever_the_order_of_the_folder(tmp_path: Path) -> None:
    assert load_corpus(1_000_000) == load_corpus(1_000_000)
    texts = {f"m{number}.py": f"x = {number}\n" * 200 for number in range(64)}
    corpora = []
    for name, order in (("a", sorted(texts)), ("b", sorted(texts, reverse=True))):
        (tmp_path / name / "site-packages").mkdir(parents=True)
        (tmp_path / name / "site-packages" / "other.py").write_text("not ours")
        for file in order:
            (tmp_path / name / file).write_text(texts[file])
        corpora.append(load_corpus(root=tmp_path / name))
    assert corpora[0] == corpora[1]
    assert corpora[0].files == 64
    training, validation = (set(part.decode().split("\n")) for part in (corpora[0].training, corpora[0].validation))
    assert training & validation <= {""}


def test_a_python_without_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SDPError, match="standard library's source is not on this machine"):
        load_corpus(root=tmp_path)
