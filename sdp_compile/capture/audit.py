"""Runs forward once without values, and finds what Python in it a graph would lose."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sdp_compile.capture.attributes import Attributes, Place
from sdp_compile.capture.clone import clone, to_meta
from sdp_compile.capture.inputs import Call, answering, grad_answer
from sdp_compile.capture.locating import lines_of_changes
from sdp_compile.capture.modes import in_mode
from sdp_compile.capture.observe import Unprofiled, Watch
from sdp_compile.capture.outside import OutsideWrite
from sdp_compile.capture.quiet import preserved_rng, quiet
from sdp_compile.capture.surroundings import Surroundings
from sdp_compile.errors import CaptureError
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import frozen
from sdp_compile.ir.program import Mode, Program
from sdp_compile.ir.reads import Read

Prepare = Callable[[nn.Module, Call], tuple[nn.Module, Call]]


@dataclass(frozen=True)
class Findings:
    """What a run of forward showed.

    Attributes:
        reads: The Python values that it read, apart from attributes.
        outputs: The attributes that it assigned tensors to.
        caches: The attributes with dictionaries that a first run fills with tensors and a second one leaves, and the
            lines that fill them.
        compiling: Where it asks whether it is being compiled; None if it does not.
        grad: Where it asks whether gradients are wanted; None if it does not.
        surroundings: What it read outside of its module, to be compared after a later run.
        functions: The user's functions that it called, with their global variables; None if it did not finish.
        calls_math: Whether they call functions of `math` themselves.
    """

    reads: tuple[Read, ...] = ()
    outputs: tuple[Place, ...] = ()
    caches: Mapping[Place, str] = field(default_factory=dict)
    compiling: str | None = None
    grad: str | None = None
    surroundings: Surroundings | None = None
    functions: Mapping[CodeType, dict[str, Any]] | None = None
    calls_math: bool = False


def audit(model: nn.Module, call: Call, mode: Mode, prepare: Prepare) -> Findings:
    """Runs a copy of ``model`` once in one mode, on meta tensors, and returns what the run showed.

    Where the model does not run on the meta device, it runs on fake tensors. If that fails too, the findings are those
    until then; capture itself will say why.

    Args:
        model: The model, which is not changed.
        call: The arguments of one call.
        mode: The mode.
        prepare: Returns a copy of the model and the arguments as fake tensors.

    Raises:
        CaptureError: Forward changes Python state, or depends on more than its arguments and its state. The error names
            the line.
    """
    bones = clone(model, to_meta)
    inputs = call.map_tensors(lambda tensor: answering(to_meta(tensor), grad_answer(tensor)))

    def on_meta() -> tuple[nn.Module, Call]:
        return in_mode(clone(bones, to_meta), mode), inputs

    def on_fake() -> tuple[nn.Module, Call]:
        return prepare(bones, inputs)

    for subject in (on_meta, on_fake):
        with preserved_rng():
            findings, finished = _run(model, mode, *subject(), again=subject, is_last=subject is on_fake)
        if finished:
            break
    return findings


def _run(
    model: nn.Module,
    mode: Mode,
    subject: nn.Module,
    call: Call,
    again: Callable[[], tuple[nn.Module, Call]],
    is_last: bool,
) -> tuple[Findings, bool]:
    kind = type(model)
    surroundings, watch = Surroundings(model, subject), Watch(model, subject)
    attributes, watch.outside = Attributes(subject, surroundings.outside), surroundings.tensors
    finished, written = False, None
    with quiet(), ExitStack() as stack:
        stack.enter_context(fake_mode_of(call, subject))
        stack.enter_context(attributes)
        stack.enter_context(Unprofiled())
        stack.enter_context(watch)
        caches: frozenset[Place] = frozenset()
        try:
            with surroundings:
                subject(*call.args, **call.kwargs)
            finished = True
            filled = attributes.filled()
            if any(place in filled for place in attributes.changed()):
                subject(*call.args, **call.kwargs)
                again_filled = attributes.filled()
                caches = frozenset(place for place, held in filled.items() if again_filled.get(place) == held)
        except OutsideWrite as error:
            written = error
        except Exception:  # export tells what is wrong
            if not is_last:  # another run will tell what is a cache
                caches = frozenset(attributes.filled())
    changed = surroundings.changed()
    surroundings.restore()
    if written is not None:
        raise written
    if changed:
        raise _lost(kind, changed[0], _line(again, surroundings) or surroundings.lines.get(changed[0], ""))
    for what, line in surroundings.impure.items():
        raise _lost(kind, what, line)
    check_attributes(kind, attributes, caches, again)
    return (
        Findings(
            (*surroundings.reads.values(), *attributes.settings.values()),
            tuple(attributes.outputs()),
            _lines_of_caches(again, caches),
            surroundings.compiling,
            surroundings.grad or watch.asked_requires_grad,
            surroundings,
            surroundings.functions if finished else None,
            surroundings.calls_math,
        ),
        finished,
    )


def check_surroundings(kind: type[nn.Module], surroundings: Surroundings | None) -> None:
    """Raises `CaptureError` if a later run changed what is outside of the model, such as a list, and gives it back.

    A list that forward empties and fills with the sizes of its inputs is the same after each call with one size.
    """
    changed = [] if surroundings is None else surroundings.changed_variables()
    if surroundings is not None:
        surroundings.restore()
    if surroundings is not None and changed:
        raise _lost(kind, changed[0], surroundings.lines.get(changed[0], ""))


def check_attributes(
    kind: type[nn.Module], attributes: Attributes, caches: Container[Place] = (), again: Any = None
) -> None:
    """Raises `CaptureError` if the run changed the Python state of a module, apart from ``caches``."""
    for name in attributes.frozen_anew():
        line = "" if again is None else _line_of_parameter(again, name)
        raise CaptureError(
            f"{kind.__name__} cannot be captured: its forward changes requires_grad of parameter {name!r}{_at(line)}. "
            "Change it before compiling, or use detach() where its gradient is not wanted."
        )
    for path, name in attributes.created():
        line = attributes.writes.get((path, name), "")
        if not line and again is not None:
            line = _line_of_part(again, (path, name))
        raise _created(kind, (path, name), line)
    for place in attributes.changed():
        if place in caches:
            continue
        path, name = place
        line = attributes.writes.get(place, "")
        if not line and again is not None:
            line = _line_of_attribute(again, place)
        if attributes.is_new(place):
            raise _created(kind, place, line)
        remedy = (
            "Keep numbers that change from call to call in a buffer "
            f"(self.register_buffer({name!r}, torch.zeros(()))), and change what is a setting outside of forward."
            if attributes.was_number(place)
            else "Return what is collected from forward, or keep it in a buffer."
        )
        raise CaptureError(
            f"{kind.__name__} cannot be captured: its forward changes attribute {name!r} of {_where(path)}{_at(line)}, "
            f"and a graph would do that only once. {remedy}"
        )
    for place in attributes.outputs():
        if place in attributes.carried or place in attributes.reads:
            path, name = place
            if attributes.is_new(place):
                raise _created(kind, place, attributes.writes[place])
            raise CaptureError(
                f"{kind.__name__} cannot be captured: its forward carries tensors from call to call in attribute "
                f"{name!r} of {_where(path)}{_at(attributes.writes[place])}. Make it a buffer of fixed shape, or an "
                "input and an output of forward."
            )


def _created(kind: type[nn.Module], place: Place, line: str) -> CaptureError:
    path, name = place
    return CaptureError(
        f"{kind.__name__} cannot be captured: its forward creates {name!r} in {_where(path)}{_at(line)}. Run the "
        "model once before compiling it, or create it in __init__."
    )


def refuse_carried(name: str, programs: Iterable[Program]) -> None:
    """Raises `CaptureError` if one mode assigns an attribute that another one reads, which graphs would not see.

    Args:
        name: The name of the model's class.
        programs: The programs of all modes and methods.
    """
    programs = list(programs)
    assigned = {place: program for program in programs for place in program.assigned}
    for program in programs:
        for read in program.reads:
            place = read.owner, read.name
            if read.kind == "attribute" and place in assigned:
                raise CaptureError(
                    f"{name} cannot be captured: its forward carries attribute {place[1]!r} of {_where(place[0])} "
                    f"from one call to another ({assigned[place].key} assigns it, {program.key} reads it). Keep it in "
                    "a buffer, which every mode sees."
                )


def _lost(kind: type[nn.Module], what: str, line: str) -> CaptureError:
    if what.startswith("draws"):
        remedy = (
            "A graph would repeat the first draw. Draw with torch and choose with a tensor, for example "
            "keep = (torch.rand((), device=x.device) > p).to(x.dtype); x = x + keep * layer(x)."
        )
    elif what.startswith("asks"):
        remedy = "Capture would go another way than eager execution. Ask isinstance(x, torch.Tensor) instead."
    elif what.startswith("masks"):
        remedy = (
            "A graph would mask them always. To attend to all, leave out the mask or the positions; or set "
            'config._attn_implementation = "eager" to mask them in every call.'
        )
    elif what.startswith("calls"):
        remedy = "A graph would repeat the first result. Move the call out of the model, or pass its result as input."
    else:
        remedy = (
            "A graph would do that only once. Return what is collected from forward, or keep it in a buffer. If only "
            "the first call does it, run the model once before compiling it."
        )
    return CaptureError(f"{kind.__name__} cannot be captured: its forward {what}{_at(line)}. {remedy}")


def _line(again: Callable[[], tuple[nn.Module, Call]], surroundings: Surroundings) -> str:
    probe = surroundings.probe()
    try:
        return _line_of(again, probe)
    finally:
        surroundings.restore()


def _line_of_attribute(again: Callable[[], tuple[nn.Module, Call]], place: Place) -> str:
    subject, call = again()
    owner = submodule(subject, place[0])
    return _line_of(lambda: (subject, call), lambda: frozen(vars(owner).get(place[1])))


def _lines_of_caches(again: Callable[[], tuple[nn.Module, Call]], places: Iterable[Place]) -> dict[Place, str]:
    """Returns the lines that fill dictionaries, all from one run."""
    places = list(places)
    if not places:
        return {}
    subject, call = again()
    held = [(vars(submodule(subject, path)), name) for path, name in places]
    probes = [partial(_entries_of, attributes, name) for attributes, name in held]
    return dict(zip(places, _lines_of(subject, call, probes), strict=True))


def _entries_of(attributes: Mapping[str, Any], name: str) -> Any:
    """Returns what tells whether a dictionary got other entries, at little cost."""
    value = attributes.get(name)
    if not isinstance(value, Mapping):
        return frozen(value)
    return [(id(key), id(entry)) for key, entry in value.items()]


def _line_of_part(again: Callable[[], tuple[nn.Module, Call]], place: Place) -> str:
    subject, call = again()
    owner = submodule(subject, place[0])
    registries: list[Any] = [owner._parameters, owner._buffers, owner._modules]
    return _line_of(lambda: (subject, call), lambda: any(place[1] in registry for registry in registries))


def _line_of_parameter(again: Callable[[], tuple[nn.Module, Call]], name: str) -> str:
    subject, call = again()
    parameter = dict(subject.named_parameters())[name]
    return _line_of(lambda: (subject, call), lambda: parameter.requires_grad)


def _line_of(again: Callable[[], tuple[nn.Module, Call]], probe: Callable[[], Any]) -> str:
    return _lines_of(*again(), [probe])[0]


def _lines_of(subject: nn.Module, call: Call, probes: Sequence[Callable[[], Any]]) -> list[str]:
    def run() -> None:
        with quiet(), fake_mode_of(call, subject), Watch(subject):
            subject(*call.args, **call.kwargs)

    return lines_of_changes(run, probes)


def fake_mode_of(call: Call, subject: nn.Module) -> Any:
    """Returns the mode that the fake tensors of a call belong to, or a context that does nothing."""
    for tensor in (*call.tensors, *subject.parameters()):
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    return ExitStack()


def _where(path: str) -> str:
    return f"module {path!r}" if path else "the model"


def _at(line: str) -> str:
    return f" at {line}" if line else ""
