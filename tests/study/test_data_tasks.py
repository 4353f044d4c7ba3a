"""Tasks whose data are files: small generated ones in the real formats."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdp_compile.errors import SDPError
from sdp_compile.study.run import run
from sdp_compile.study.spec import Contestant, Run, Study
from sdp_compile.study.tasks import Shape, Task, make_task
from tests.recipes.test_cifar import write_cifar

SMALL = {"width": 4, "hidden": 8, "blocks": 1, "evaluated": 20}


def cifar(folder: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> Task:
    from torchvision import datasets

    write_cifar(folder, classes)
    names = [f"class {number}" for number in range(classes)]
    place, file, key = (
        ("cifar-10-batches-py", "batches.meta", "label_names")
        if classes == 10
        else ("cifar-100-python", "meta", "fine_label_names")
    )
    for path in (folder / place).iterdir():  # the real ones are of Python 2, whose text is read as either
        content = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps({name.decode(): value for name, value in content.items()}))
    (folder / place / file).write_bytes(pickle.dumps({key: names}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # ours have other sums
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    return make_task(f"cifar{classes}", {"folder": str(folder), **SMALL})


def write_images(folder: Path, suffix: str = "JPEG") -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 5)):
        for number, name in enumerate(("n01", "n02", "n03")):
            (folder / part / name).mkdir(parents=True)
            for image in range(count):
                shape = (40 + 5 * image, 60, 3) if image else (40, 60)  # a grey one, and some sizes
                values = random.normal(40 + 80 * number, 8, shape).clip(0, 255).astype(np.uint8)
                Image.fromarray(values).save(folder / part / name / f"{image}.{suffix}")


def write_documents(folder: Path, kind: str, texts: list[Any], column: str = "text") -> None:
    (folder / "shards").mkdir(parents=True)
    for shard in range(2):
        part = texts[shard::2]
        if kind == "jsonl":
            lines = "".join(json.dumps({column: text, "id": 3}) + "\n" for text in part)
            (folder / "shards" / f"{shard}.jsonl").write_text(lines, encoding="utf-8")
        else:
            pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            table = pyarrow.table({column: part, "id": [3] * len(part)})
            parquet.write_table(table, folder / "shards" / f"{shard}.parquet", row_group_size=3)


TEXTS = [f"document {number} says élan. " * (number % 5 + 4) for number in range(64)]


def learns(task: Task, steps: int, rate: float) -> tuple[float, float]:
    """Returns the figure before and after training on the task."""
    torch.manual_seed(0)
    model, generator = task.build(Shape()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    before = task.evaluate(model.eval(), "final")[task.goal]
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, task.draw(16, generator)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return before, task.evaluate(model.eval(), "final")[task.goal]


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = cifar(tmp_path, classes, monkeypatch)
    check_images(task, 32, classes)
    if classes == 10:
        before, after = learns(task, 40, 0.01)
        assert after > before + 0.2


def test_pickles_that_are_not_cifars_are_not_opened(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "pwned"),)

    write_cifar(tmp_path, 10)
    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        path.write_bytes(pickle.dumps({"data": Hostile()}))
    with pytest.raises(SDPError, match="cifar-10-batches-py in it"):
        make_task("cifar10", {"folder": str(tmp_path)})
    assert not (tmp_path / "pwned").exists()


def test_folders_of_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    task = make_task("images", {"folder": str(tmp_path), "size": 24, **SMALL})
    check_images(task, 24, 3)
    assert learns(task, 40, 0.01)[1] > 0.8
    with pytest.raises(SDPError, match="two held-out"):
        lonely = tmp_path / "lonely"
        for part in ("train", "val"):
            (lonely / part / "n01").mkdir(parents=True)
            (lonely / part / "n01" / "0.JPEG").symlink_to(tmp_path / "train" / "n01" / "0.JPEG")
        make_task("images", {"folder": str(lonely)})
    (tmp_path / "val" / "n03").rename(tmp_path / "val" / "n04")
    with pytest.raises(SDPError, match="same classes"):
        make_task("images", {"folder": str(tmp_path)})


def check_images(task: Task, size: int, classes: int) -> None:
    x, y = task.draw(16, torch.Generator().manual_seed(3))
    assert x.shape == (16, 3, size, size) and x.dtype == torch.float32 and 0 <= y.min() and y.max() < classes
    state = torch.random.get_rng_state()
    again = task.draw(16, torch.Generator().manual_seed(3))
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])  # the generator decides all
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(x, task.draw(16, torch.Generator().manual_seed(4))[0])
    model = task.build(Shape()).eval()
    assert model(x).shape == (16, classes)
    assert task.evaluate(model, "tuning")["loss"] != task.evaluate(model, "final")["loss"]
    assert torch.cat(task.calibration()).shape[1:] == (3, size, size)
    smaller, whole = (sum(map(torch.numel, task.build(Shape(share)).parameters())) for share in (0.5, 1.0))
    assert smaller < 0.7 * whole
    dropping = task.build(Shape(dropout=0.5, drop_branch=0.5)).train()
    assert not torch.equal(dropping(x), dropping(x))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_documents(kind: str, tmp_path: Path) -> None:
    write_documents(tmp_path, kind, TEXTS)
    options = {"layers": 1, "width": 16, "heads": 2, "hidden": 32, "sequence": 16, "windows": 8}
    task = make_task("documents", {"folder": str(tmp_path), **options})
    # The first shard has every other text; the last of sixteen documents is held out.
    read = [*TEXTS[::2], *TEXTS[1::2]]
    held = [text for number, text in enumerate(read, 1) if number % 16 == 0]
    training = [text for number, text in enumerate(read, 1) if number % 16]
    assert bytes(vars(task)["_held_out"].tolist()) == "\n\n".join(held).encode()
    assert bytes(vars(task)["_training"].tolist()) == "\n\n".join(training).encode()
    x, y = task.draw(5, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (5, 16) and torch.equal(x[:, 1:], y[:, :-1])
    before, after = learns(task, 30, 0.01)
    assert after < before - 0.5
    limited = make_task("documents", {"folder": str(tmp_path), "bytes": 3000, **options, "windows": 2})
    assert 2500 < len(vars(limited)["_training"]) + len(vars(limited)["_held_out"]) < 3500


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        (TEXTS, {"column": "content"}, ["0.jsonl", "'content'"]),
        ([*TEXTS[:3], 7], {}, ["1.jsonl", "int instead of text"]),
        (TEXTS[:20], {}, ["windows=256", "sequence=48", "Raise bytes=8000000"]),
        (TEXTS, {"folder": "absent"}, ["'absent'", "*.parquet", "*.jsonl"]),
        (TEXTS, {"folder": ""}, ["option folder"]),
    ],
)
def test_text_that_cannot_be_is_named(
    texts: list[Any], options: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    write_documents(tmp_path, "jsonl", texts)
    with pytest.raises(SDPError) as caught:
        make_task("documents", {"folder": str(tmp_path), **options})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("name", "words"),
    [("cifar10", "cifar-10-batches-py in it"), ("cifar100", "cifar-100-python"), ("images", "train/CLASS")],
)
def test_images_that_are_absent_are_named(name: str, words: str, tmp_path: Path) -> None:
    for folder in ("", str(tmp_path)):
        with pytest.raises(SDPError, match=words):
            make_task(name, {"folder": folder})


def test_that_a_study_runs_on_them(tmp_path: Path) -> None:
    """Subnetworks are cut along what a smaller model has less of; another folder's results are others."""
    write_images(tmp_path)
    options = {"folder": str(tmp_path), "size": 16, **SMALL}
    contestants = (
        Contestant(name="tail", schedule="dense-tail", match="flops"),
        Contestant(name="small", share=0.5, match="steps"),
    )
    study = Study(task="images", options=options, steps=4, batch=2, learning_rates=(0.01,), contestants=contestants)
    one = Run("tail", "flops", 0, 0.01, False)
    found = run(study, one)
    assert found["phases"][0]["state"] < 0.75 and found["steps"] > 4
    small = run(study, Run("small", "steps", 0, 0.01, False))
    assert small["state"] == pytest.approx(found["phases"][0]["state"], abs=0.02)
    assert study.key(one) != study.replace(options={**options, "folder": str(tmp_path / "other")}).key(one)
