"""The recipe for ImageNet, on small generated JPEG files in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.recipes.running import forget, logged, part, trained

pytestmark = pytest.mark.timeout(500)

SIZES = {"swin_t": 28_288_354, "vit_s": 22_050_664, "resnet50": 25_557_032}


def write_images(folder: Path, classes: int = 4) -> Path:
    """Images whose brightness is their class: eight of each for training, three for evaluation."""
    random = np.random.default_rng(0)
    for name, count in (("train", 8), ("val", 3)):
        for label in range(classes):
            place = folder / name / f"n{label:08}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.normal(60 * label + 30, 10, (120 + number, 130, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{place.name}_{number}.JPEG")
    return folder


def test_that_two_workers_go_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """A process of its own that loads images makes no difference."""
    run = tmp_path / "run"
    options = [write_images(tmp_path / "data"), run, "--tiny", "--batch", "8", "--epochs", "1", "--every", "3"]
    options += ["--schedule", "backward-tail"]
    whole = trained("imagenet.py", *options, "--processes", "1")
    assert whole.count("the full model has top-1") == 2
    expected = torch.load(run / "model.pt", weights_only=True)
    forget(run, 4)
    trained("imagenet.py", *options, "--processes", "0")
    found = torch.load(run / "model.pt", weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    lines = logged(run, "seconds")
    assert [line["step"] for line in lines] == [3, 4, 4] and lines[1] == lines[2] and lines[0] != lines[1]


@pytest.mark.parametrize("name", ["resnet50", "vit_s"])
def test_that_the_accuracy_is_that_of_the_saved_model(name: str, tmp_path: Path) -> None:
    """On one process without torchrun; ResNet-50 has running statistics, which calibration estimates."""
    data, recipe = write_images(tmp_path / "data"), part("imagenet")
    options = ["--model", name, "--tiny", "--batch", "8", "--epochs", "2", "--processes", "0", "--rate", "0.01"]
    trained("imagenet.py", data, tmp_path / "run", *options, workers=None)
    model = recipe.build(name, 4, True).eval()
    model.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
    right = 0
    for path in sorted((data / "val").rglob("*.JPEG")):
        image = recipe.transforms(112, None)(Image.open(path).convert("RGB"))
        right += int(model(image[None]).argmax()) == int(path.parent.name[1:])
    last = logged(tmp_path / "run")[-1]
    assert last["step"] == 8 and last["top1"] == right / 12 and last["top5"] == 1.0


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_models(name: str) -> None:
    recipe = part("imagenet")
    with torch.device("meta"):
        model = recipe.build(name, 1000, False)
        assert sum(one.numel() for one in model.parameters()) == SIZES[name]
        if name != "vit_s":
            assert [*model.state_dict()] == [*getattr(torchvision.models, name)().state_dict()]
    decayed, others = part("training").decayed(model, 0.05)
    assert decayed["weight_decay"] == 0.05 and others["weight_decay"] == 0.0
    names = {id(one): key for key, one in model.named_parameters()}
    assert all(names[id(one)].endswith("weight") for one in decayed["params"])
    kept = {names[id(one)].rpartition(".")[2] for one in others["params"]}
    assert (
        kept - {"weight", "bias", "in_proj_bias"}
        == {
            "swin_t": {"relative_position_bias_table"},
            "vit_s": {"class_token", "pos_embedding"},
            "resnet50": set(),
        }[name]
    )


def test_that_an_image_is_augmented_by_its_number_in_the_run(tmp_path: Path) -> None:
    recipe = part("imagenet")
    train, _, _ = recipe.read(write_images(tmp_path), 112, recipe.SETTINGS["swin_t"])
    images = recipe.Augmented(train)
    before = torch.get_rng_state()
    first, same, other = (images[3, number][0] for number in (7, 7, 8))
    assert first.shape == (3, 112, 112)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_refused(tmp_path: Path) -> None:
    recipe, settings = part("imagenet"), part("imagenet").SETTINGS["vit_s"]
    with pytest.raises(SystemExit, match="has no folder train"):
        recipe.read(tmp_path, 112, settings)
    write_images(tmp_path)
    (tmp_path / "val" / "n00000002").rename(tmp_path / "val" / "n00000009")
    with pytest.raises(SystemExit, match=r"lacks \['n00000002', 'n00000009'\]"):
        recipe.read(tmp_path, 112, settings)
    with pytest.raises(SystemExit, match="cannot be shared by 3 workers"):
        part("training").Worker(0, 3, torch.device("cpu")).share(8)
