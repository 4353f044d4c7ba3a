"""Averages of weights over time: each worker averages its slices, and the full model of the average is assembled."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sdp_compile as sdp
from sdp_compile import NeuronPolicy
from tests.distributed import run_workers

STEPS = 4


def _original() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def _train(rank: int) -> None:
    torch.set_default_dtype(torch.float64)
    module = sdp.compile(_original(), NeuronPolicy(coverage=0.5), (torch.randn(4, 6),))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    averages: dict[str, Any] = {
        "mean": AveragedModel(module),
        "ema": AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True),
        "timm 2": ModelEmaV2(module, decay=0.75),
        "timm 3": ModelEmaV3(module, decay=0.75),
        "by hand": copy.deepcopy(module),
    }
    history: list[dict[str, Tensor]] = [module.full_state_dict()]
    torch.manual_seed(rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(module(torch.randn(4, 6)), torch.randn(4, 3)).backward()
        optimizer.step()
        for name in ("mean", "ema"):
            averages[name].update_parameters(module)
        averages["timm 2"].update(module)
        averages["timm 3"].update(module)
        with torch.no_grad():
            for average, value in zip(averages["by hand"].parameters(), module.parameters(), strict=True):
                average.lerp_(value, 0.25)
        history.append(module.full_state_dict())
    for name, average in averages.items():
        held: Any = average if name == "by hand" else average.module
        full, names = held.full_model(), dict(_original().named_parameters())
        for key in names:
            values = [state[key] for state in history]
            # swa_utils begins with the first values that it is given, the others with those at their construction.
            expected = torch.stack(values[1:]).mean(0) if name == "mean" else values[1 if name == "ema" else 0]
            for value in () if name == "mean" else values[2 if name == "ema" else 1 :]:
                expected = 0.75 * expected + 0.25 * value
            torch.testing.assert_close(full.state_dict()[key], expected, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
        assert set(full.state_dict()) == set(_original().state_dict())
        saved = copy.deepcopy(average.state_dict())
        average.load_state_dict(saved)
    original = module.full_model()
    torch.testing.assert_close(original.state_dict()["0.weight"], history[-1]["0.weight"], rtol=0, atol=0)


def test_averages_of_swa_utils_and_timm_are_assembled() -> None:
    run_workers(_train, 2)
