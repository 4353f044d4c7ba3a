"""The models of the studies for `sdp-compile bench`, which measures the time of their steps."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sdp_compile.bench.work import GPT_BATCH, GPT_CONFIG
from sdp_compile.models.gpt import GPT
from sdp_compile.study.spec import Study
from sdp_compile.study.tasks import Shape, make_task


def small_gpt() -> tuple[nn.Module, tuple[Tensor]]:
    """The GPT of `sdp-compile bench` with half of its heads and hidden units."""
    config = GPT_CONFIG.smaller(0.5)
    return GPT(config), (torch.randint(config.vocabulary, (GPT_BATCH, config.sequence)),)


def teacher() -> tuple[nn.Module, tuple[Tensor]]:
    """The student of ``teacher.toml``, and a worker's inputs."""
    return _model("teacher", 1.0)


def small_teacher() -> tuple[nn.Module, tuple[Tensor]]:
    """The same with half of the hidden units."""
    return _model("teacher", 0.5)


def _model(name: str, share: float) -> tuple[nn.Module, tuple[Tensor]]:
    study = Study.load(Path(__file__).with_name(f"{name}.toml"))
    task = make_task(study.task, study.options)
    return task.build(Shape(share)), (task.draw(study.batch, torch.Generator().manual_seed(0))[0],)
