"""The exposed communication of traces written by hand."""

from typing import Any

import pytest

from sdp_compile.bench.overlap import STEP, Overlap, overlap, union, without
from sdp_compile.runtime.waiting.spans import AVERAGE, LAUNCH, WAIT

MAIN, OTHER = 1, 2


def event(name: str, start: float, end: float, cat: str = "cpu_op", tid: int | str = MAIN) -> dict[str, Any]:
    """An event of a trace, in milliseconds."""
    return {"ph": "X", "name": name, "cat": cat, "pid": 7, "tid": tid, "ts": start * 1000, "dur": (end - start) * 1000}


def ranged(name: str, start: float, end: float, tid: int | str = MAIN) -> dict[str, Any]:
    return event(name, start, end, "user_annotation", tid)


def milliseconds(found: Overlap) -> tuple[float, float, float]:
    return tuple(round(seconds * 1e3, 6) for seconds in (found.step, found.communication, found.exposed))  # type: ignore[return-value]


def test_a_collective_behind_operators_is_hidden() -> None:
    found = overlap([ranged(STEP, 0, 100), event("aten::mm", 10, 90), ranged("gloo:all_reduce", 20, 60, OTHER)])
    assert milliseconds(found) == (100, 40, 0)
    assert found.hidden == 1


def test_what_outlasts_the_operators_is_exposed() -> None:
    found = overlap([ranged(STEP, 0, 100), event("aten::mm", 10, 50), ranged("gloo:all_reduce", 20, 60, OTHER)])
    assert milliseconds(found) == (100, 40, 10)
    assert found.hidden == 0.75


def test_a_wait_is_exposed_although_a_range_around_it_computes() -> None:
    inside = [ranged(AVERAGE, 40, 100), ranged(WAIT, 50, 80), event("aten::copy_", 80, 90)]
    found = overlap([ranged(STEP, 0, 100), *inside, ranged("gloo:all_reduce", 30, 80, OTHER)])
    assert milliseconds(found) == (100, 50, 40)  # 30 to 40 and the wait


def test_the_launch_of_a_collective_is_no_computing() -> None:
    launches = [event("c10d::allreduce_", 10, 20), event("record_param_comms", 10, 20)]
    found = overlap([ranged(STEP, 0, 40), *launches, ranged("gloo:all_reduce", 10, 30, OTHER)])
    assert milliseconds(found) == (40, 20, 20)
    found = overlap([ranged(STEP, 0, 40), ranged(LAUNCH, 10, 20), ranged("gloo:all_reduce", 10, 30, OTHER)])
    assert milliseconds(found) == (40, 20, 10)  # our own range around it: packing, and calls into the library


def test_operators_of_other_threads_hide_nothing() -> None:
    found = overlap([ranged(STEP, 0, 40), event("aten::add", 0, 40, tid=3), ranged("gloo:all_reduce", 0, 30, OTHER)])
    assert milliseconds(found) == (40, 30, 30)


def test_concurrent_collectives_count_once() -> None:
    both = [ranged("gloo:all_reduce", 10, 30, OTHER), ranged("link:all_gather", 20, 50, "wire")]
    assert milliseconds(overlap([ranged(STEP, 0, 100), *both, event("aten::mm", 0, 25)])) == (100, 40, 25)


def test_functional_waits_are_waits() -> None:
    waits = [event("_c10d_functional::wait_tensor", 10, 30), event("aten::mm", 30, 40)]
    assert milliseconds(overlap([ranged(STEP, 0, 40), *waits])) == (40, 20, 20)


def test_figures_are_per_step_and_leave_out_what_lies_between() -> None:
    steps = [ranged(STEP, 0, 10), ranged(STEP, 100, 130)]
    found = overlap([*steps, ranged("gloo:broadcast", 5, 110, OTHER), event("aten::mm", 0, 7)])
    assert found.steps == 2
    assert milliseconds(found) == (20, 7.5, 6.5)


def test_kernels_decide_on_an_accelerator() -> None:
    """The host launches early; what the device runs beside the collective hides it."""
    kernels = [
        event("sm90_gemm", 20, 50, "kernel", 7),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)", 30, 70, "kernel", 13),
        event("vectorized_elementwise_kernel", 60, 65, "kernel", 7),
        event("Memcpy HtoD", 0, 5, "gpu_memcpy", 7),
    ]
    host = [event("aten::mm", 0, 100), event("autograd::engine", 0, 100)]
    assert milliseconds(overlap([ranged(STEP, 0, 100), *kernels, *host])) == (100, 40, 15)
    assert milliseconds(overlap([ranged(STEP, 0, 100), *kernels, *host, ranged(WAIT, 80, 90)])) == (100, 50, 25)


def test_steps_as_the_device_sees_them_are_no_steps() -> None:
    seen = {**ranged(STEP, 500, 600), "cat": "gpu_user_annotation"}
    assert overlap([ranged(STEP, 0, 100), seen]).steps == 1


def test_without_communication_there_is_no_share() -> None:
    found = overlap([ranged(STEP, 0, 10), event("aten::mm", 0, 5), {"ph": "i", "name": "mark"}])
    assert (found.communication, found.exposed, found.hidden) == (0, 0, None)
    assert found.to_dict()["overlap_share"] is None


def test_a_trace_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match=STEP):
        overlap([event("aten::mm", 0, 5)])


def test_intervals() -> None:
    assert union([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert without([(0, 10), (20, 30)], [(2, 3), (9, 21), (25, 26), (29, 40)]) == [(0, 2), (3, 9), (21, 25), (26, 29)]
    assert without([(0, 10)], []) == [(0, 10)]
    assert without([(0, 10)], [(0, 10)]) == []
