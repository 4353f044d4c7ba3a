"""The pipeline issues the steps of errands in the order that is proved for plans."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from sdp_compile.planning.schedule import turns
from sdp_compile.runtime.comm.streams import Begun, Step
from sdp_compile.runtime.levels.pipeline import Pipeline


@pytest.mark.parametrize(("errands", "depth"), [(1, 1), (1, 3), (2, 6), (7, 2), (7, 5)])
def test_steps_are_issued_in_turns(errands: int, depth: int) -> None:
    issued: list[tuple[int, int]] = []

    def step(errand: int, number: int) -> Step:
        def begin(tensors: object) -> Begun:
            issued.append((errand, number))
            return Begun((), list)

        return Step(0, begin, nullcontext)

    pipeline = Pipeline()
    for errand in range(errands):
        pipeline.send([step(errand, number) for number in range(depth)], [], torch.device("cpu"))
    pipeline.drain()
    assert issued == [turn[1:] for turn in turns(errands, depth)]
