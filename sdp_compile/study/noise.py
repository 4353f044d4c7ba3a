"""The gradient noise scale: how many samples a step can use before more of them hardly help."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdp_compile.study.tasks import Batch, Task


def noise_scale(task: Task, model: nn.Module, batches: Sequence[Batch]) -> float:
    """Returns the simple noise scale tr(S) / |G|² of a model's gradient G with the covariance S of a sample's.

    A step of many fewer samples is mostly noise, and one of many more is hardly better than one of so many: this is
    the critical batch size, to which SDP's batch per unit, N·C of all samples, compares.

    Args:
        task: What the loss is.
        model: The model; it is left as it is, with its gradients.
        batches: At least two batches of as many samples each.

    Returns:
        The estimate, in samples; infinity where the batches are too small to see a gradient.

    Source: "An Empirical Model of Large-Batch Training", arXiv 1812.06162, appendix A.1.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    single, total = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        gradients = torch.autograd.grad(task.loss(model, batch), parameters, allow_unused=True)
        single += _square(gradients) / len(batches)
        for sum_, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_ += gradient / len(batches)
    small = len(batches[0][0])
    large = small * len(batches)
    both = _square(total)
    signal = (large * both - small * single) / (large - small)
    noise = (single - both) / (1 / small - 1 / large)
    return noise / signal if signal > 0 else float("inf")


def _square(gradients: Sequence[Tensor | None]) -> float:
    return sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None)
