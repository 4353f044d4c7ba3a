"""Why the statements of the workers differ: the same verdict on all of them, from the details of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sdp_compile.runtime.waiting.words import workers_text

OUTSIDE = "outside"
"""What stands for a module's number in the keys of parameters outside compiled modules. All workers must step them."""

OF_BACKWARD = "of a backward"
"""An item of statements about one of several models: workers may state different ones, and compare nothing then."""

CAUSES = {
    "gradient": (
        "Something changed gradients after backward, but not alike on all owners: clipping, scaling or noise that "
        "depends on the worker, or gradients of torch.autograd.grad(), which nobody averages. Clip with "
        "sdp.clip_grad_norm_(), scale with sdp.GradScaler, and use backward()."
    ),
    "value": (
        "Something changed values, but not alike on all owners: initialisation of slices (nn.init after "
        "sdp.compile()), noise from different seeds, an assignment on one worker, or before one of the last steps its "
        "gradients or the optimizer's state. Initialise the original model before sdp.compile(), or load values with "
        "load_full_state_dict() on all workers."
    ),
    OUTSIDE: (
        "It lies outside the compiled model, or was replaced there, so nobody averages its gradient. Put it into the "
        "model before sdp.compile(), or average its gradient yourself, for example with DistributedDataParallel. A "
        "parameter that each worker shall train on its own belongs in an optimizer of its own."
    ),
    "requires_grad": (
        "Call requires_grad_() on all workers alike, or on the original model before sdp.compile(): where one owner "
        "freezes a parameter and another trains it, they drift apart."
    ),
    "dtype": "Cast the model on all workers alike, or the original model before sdp.compile().",
    "state": (
        "Something changed the optimizer's state, but not alike on all owners: an assignment on one worker, a state "
        "that was loaded on one worker, or a memory error. model.repair(optimizer) takes what most owners hold."
    ),
    "option": "Give the optimizer the same options on all workers.",
}
"""Likely causes of a difference by its kind, and what to do."""

DAMAGE = frozenset({"gradient", "value", "state"})
"""The kinds of differences that a memory error may cause, too."""

ROUNDING = "whether a kernel's rounding depends on an element's position"
"""What else must be the same: where it does, the first owner's values are broadcast after the step."""

_SKIPPED = (
    "All workers must run the same backward passes and steps. Often one of them has skipped a step: skip steps on all "
    "workers together, as sdp.GradScaler does."
)

_CALLED = (
    "All workers must make that call, also those that do not need its result: take it out of a branch such as "
    "`if rank == 0:`, and use the result there. With uneven numbers of batches, stop at the smallest on all workers."
)


@dataclass(frozen=True)
class Details:
    """What stands behind a worker's statement.

    Attributes:
        point: Where the worker is.
        held: The keys of all parameters of which it holds a part.
        steps: The keys of the parameters that it is about to step, each with the number of its options; None elsewhere.
        options: The options of each parameter group as text.
        items: What is compared bit by bit: (hash, kind, what it is called in the error) by identifier.
        having: The keys of the parameters that it steps and has a gradient of.
    """

    point: str = ""
    held: Sequence[str] = ()
    steps: Mapping[str, int] | None = None
    options: Sequence[Mapping[str, str]] = ()
    items: Mapping[str, Sequence[str]] = field(default_factory=dict)
    having: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """What all workers conclude.

    Attributes:
        error: Why they cannot go on; empty if some can.
        complete: The workers that go on. The others state the same once more.
        is_damage: Whether what the owners of a unit hold differs.
    """

    error: str = ""
    complete: frozenset[int] = frozenset()
    is_damage: bool = False


def judge(views: Sequence[Details]) -> Verdict:
    """Returns the verdict on statements that do not agree.

    A worker can take its step if all workers that hold a part of its parameters are about to take it too. A worker that
    holds nothing of them is elsewhere meanwhile, and that is no error.

    Args:
        views: The details of all workers by rank.
    """
    stepping = {rank: view.steps for rank, view in enumerate(views) if view.steps is not None}
    complete = _complete(views, stepping)
    if not complete and len({view.point for view in views}) > 1:
        places = _split({rank: view.point for rank, view in enumerate(views)})
        texts = [f"{workers_text(ranks)} {'is' if len(ranks) == 1 else 'are'} {at}" for at, ranks in places.items()]
        remedy = _CALLED if any(place.endswith("()") for place in places) else _SKIPPED
        return Verdict(f"{_capital(', while '.join(texts))}. {remedy}")
    waiting = {key for rank, keys in stepping.items() if rank not in complete for key in keys}
    if stepping and (not complete or any(key in waiting for rank in complete for key in stepping[rank])):
        return Verdict(_other_parameters(views, stepping))
    compared = sorted(complete) if stepping else range(len(views))
    error, kind = _difference_of_options(views, stepping, compared), ""
    if not error:
        error, kind = _difference_of_items(views, compared)
    if not error and all(OF_BACKWARD in view.items for view in views):
        complete = set(range(len(views)))
    elif not error and len(compared) == len(views):
        error = "The workers' statements differ, but their details do not. This is a bug; please report it."
    return Verdict(error, frozenset(complete), kind in DAMAGE)


def _complete(views: Sequence[Details], stepping: Mapping[int, Mapping[str, int]]) -> set[int]:
    """Returns the workers that can take their step."""
    lacking = set(_lacking(views, stepping))
    return {rank for rank, keys in stepping.items() if lacking.isdisjoint(keys)}


def _lacking(views: Sequence[Details], stepping: Mapping[int, Mapping[str, int]]) -> dict[str, list[int]]:
    """Returns the parameters that some workers step and others that hold them do not, and these others."""
    holders: dict[str, list[int]] = {}
    for rank, view in enumerate(views):
        for key in view.held:
            holders.setdefault(key, []).append(rank)
    result = {}
    for key in dict.fromkeys(key for keys in stepping.values() for key in keys):
        wanted = range(len(views)) if key.startswith(f"{OUTSIDE}:") else holders.get(key, [])
        others = [rank for rank in wanted if key not in stepping.get(rank, ())]
        if others:
            result[key] = others
    return result


def _other_parameters(views: Sequence[Details], stepping: Mapping[int, Mapping[str, int]]) -> str:
    key, others = next(iter(_lacking(views, stepping).items()))
    having = [rank for rank, keys in stepping.items() if key in keys]
    return (
        f"{_capital(workers_text(having))} would step {_name(key)}, and {workers_text(others)} would not, because the "
        f"optimizers hold different parameters. {CAUSES['option']}"
    )


def _difference_of_options(
    views: Sequence[Details], stepping: Mapping[int, Mapping[str, int]], compared: Sequence[int]
) -> str:
    for key in dict.fromkeys(key for rank in compared for key in stepping.get(rank, ())):
        options = {rank: views[rank].options[stepping[rank][key]] for rank in compared if key in stepping.get(rank, ())}
        for option in dict.fromkeys(name for own in options.values() for name in own):
            values = _split({rank: own.get(option, "not given") for rank, own in options.items()})
            if len(values) > 1:
                texts = [f"{value} on {workers_text(ranks)}" for value, ranks in values.items()]
                if option == ROUNDING:
                    return (
                        f"The workers would step {_name(key)} to different bits: {option} is {' and '.join(texts)}, "
                        "because their processors differ. Give the optimizer other kernels, for example with "
                        "fused=False or foreach=False."
                    )
                return (
                    f"The workers would step {_name(key)} with different options: {option} is {' and '.join(texts)}. "
                    "Perhaps a scheduler got another metric on each worker (average it over the workers first), or one "
                    f"worker changed an option. {CAUSES['option']}"
                )
    return ""


def _difference_of_items(views: Sequence[Details], compared: Sequence[int]) -> tuple[str, str]:
    """Returns the error for the first difference, and its kind; both are empty without one."""
    for identifier in dict.fromkeys(item for rank in compared for item in views[rank].items):
        items = {rank: views[rank].items[identifier] for rank in compared if identifier in views[rank].items}
        parts = _split({rank: item[0] for rank, item in items.items()})
        if len(parts) > 1:
            _, kind, label = next(iter(items.values()))
            *sides, last = (workers_text(ranks) for ranks in parts.values())
            return f"{label} differs between {', '.join(sides)} and {last}. {CAUSES[kind]}", kind
    return "", ""


def _split(values: Mapping[int, str]) -> dict[str, list[int]]:
    """Returns the workers that have each value."""
    result: dict[str, list[int]] = {}
    for rank, value in values.items():
        result.setdefault(value, []).append(rank)
    return result


def _name(key: str) -> str:
    """Returns what a parameter is called in errors."""
    before, _, name = key.partition(":")
    return name if before == OUTSIDE else repr(name)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
