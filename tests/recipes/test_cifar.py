"""The recipe for CIFAR, on small generated data in the real format."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.recipes.running import forget, logged, run, trained

pytestmark = pytest.mark.timeout(500)


def write_cifar(folder: Path, classes: int, count: int = 40) -> None:
    """Images whose brightness is their class, as pickles of the real layout."""
    random = np.random.default_rng(0)
    if classes == 10:
        names, key, place = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"], b"labels", "cifar-10-batches-py"
    else:
        names, key, place = ["train", "test"], b"fine_labels", "cifar-100-python"
    (folder / place).mkdir(parents=True)
    for name in names:
        labels = random.integers(0, classes, count)
        images = random.normal(labels[:, None] * (200 / classes) + 20, 8, (count, 3072)).clip(0, 255).astype(np.uint8)
        with (folder / place / name).open("wb") as file:
            pickle.dump({key: labels.tolist(), b"data": images, b"batch_label": b"of a test"}, file, protocol=2)


def test_that_it_trains_and_goes_on_bit_by_bit(tmp_path: Path) -> None:
    write_cifar(tmp_path / "data", 10)
    options = ["--model", "wrn10", "--epochs", "2", "--batch", "20", "--rate", "0.05", "--schedule", "backward-tail"]
    whole = trained("cifar.py", tmp_path / "data", tmp_path / "run", *options)
    assert whole.count("accuracy of the full model") == 2
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == ["step-00000010", "step-00000020"]
    expected = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    forget(tmp_path / "run", 20)
    again = trained("cifar.py", tmp_path / "data", tmp_path / "run", *options)
    assert again.count("accuracy of the full model") == 1
    found = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    lines = logged(tmp_path / "run", "seconds")
    assert [line["step"] for line in lines] == [10, 20, 20] and lines[1] == lines[2]


def test_that_cifar_100_is_read_and_code_in_pickles_is_not_run(tmp_path: Path) -> None:
    write_cifar(tmp_path / "data", 100)
    options = ["--model", "wrn10", "--epochs", "1", "--batch", "20", "--schedule", "neuron"]
    trained("cifar.py", tmp_path / "data", tmp_path / "run", *options, workers=None)
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True)["8.weight"].shape == (100, 64)

    class Hostile:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "pwned"),)

    (tmp_path / "data" / "cifar-100-python" / "train").write_bytes(pickle.dumps({b"data": Hostile()}))
    result = run("cifar.py", tmp_path / "data", tmp_path / "other", *options, workers=None)
    assert result.returncode != 0 and "does not belong into CIFAR's files" in result.stderr
    assert not (tmp_path / "pwned").exists()
