"""Pipelines: the passes that run, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from sdp_compile.errors import PassError, did_you_mean
from sdp_compile.passes.base import Pass
from sdp_compile.passes.bypass_blocks import BypassBlocks
from sdp_compile.passes.dead_code import DeadCode
from sdp_compile.passes.mask_gradients import MaskGradients
from sdp_compile.passes.mask_parameters import MaskParameters
from sdp_compile.passes.rescale import Rescale
from sdp_compile.passes.slice_parameters import SliceParameters
from sdp_compile.passes.split_parameters import SplitParameters
from sdp_compile.passes.sync_gradients import SyncGradients
from sdp_compile.passes.verify import Verify
from sdp_compile.passes.zero_blocks import ZeroBlocks
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.registry import Registry
from sdp_compile.toml import read_toml

PassClass = TypeVar("PassClass", bound=type[Pass])

Passes = str | PathLike[str] | Sequence[Pass] | None
"""What ``passes=`` takes; see `resolve_pipeline`."""

PASSES: Registry[Pass] = Registry(
    "pass", Pass, "sdp_compile.passes", PassError, hint="The name of a TOML file must end in .toml."
)
"""All passes by name, including those that installed packages offer as entry points ``sdp_compile.passes``."""

for _known in (
    BypassBlocks,
    DeadCode,
    MaskGradients,
    MaskParameters,
    Rescale,
    SliceParameters,
    SplitParameters,
    SyncGradients,
    Verify,
    ZeroBlocks,
):
    PASSES.register(_known.name)(_known)


def register_pass(name: str) -> Callable[[PassClass], PassClass]:
    """Registers the decorated pass class, for ``passes="name"``, TOML files and the command line.

    To be added by name, a pass must have a default for each of its fields. A TOML file can set them.

    Args:
        name: The name of the pass. It also becomes the ``name`` of the class.

    Returns:
        A decorator that registers a class and returns it.

    Raises:
        PassError: If the class is not a pass, or another class is registered under this name.
    """

    def register(cls: PassClass) -> PassClass:
        PASSES.register(name)(cls)
        cls.name = name
        return cls

    return register


def pipeline(
    lowering: LoweringKind = "sliced",
    masking: Masking = "forward",
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
) -> tuple[Pass, ...]:
    """Returns the default passes, in order.

    Args:
        lowering: ``"sliced"`` for physically smaller parameters, ``"masked"`` for the full-size reference.
        masking: The masking of the plan.
        bucket_bytes: Upper bound of the size of one gradient reduction in bytes.
    """
    last = (DeadCode(), SyncGradients(bucket_bytes), Verify())
    pipelines: dict[tuple[LoweringKind, Masking], tuple[Pass, ...]] = {
        ("sliced", "forward"): (Rescale(), BypassBlocks(), SliceParameters(), *last),
        ("masked", "forward"): (Rescale(), ZeroBlocks(), MaskParameters(), *last),
        ("sliced", "backward"): (SplitParameters(), *last),
        ("masked", "backward"): (MaskGradients(), *last),
    }
    return pipelines[lowering, masking]


def with_pass(passes: Sequence[Pass], added: Pass, before: str | None = None) -> tuple[Pass, ...]:
    """Returns ``passes`` with one more.

    Args:
        passes: A pipeline.
        added: The pass to add.
        before: The name of the pass that it goes before; ``added.before`` by default.

    Raises:
        PassError: If the pipeline has no pass of that name.
    """
    before = added.before if before is None else before
    names = [known.name for known in passes]
    if before not in names:
        raise PassError(
            f"The pass {added.name!r} goes before {before!r}, which the pipeline does not have."
            f"{did_you_mean(before, names)} The pipeline is {', '.join(names)}."
        )
    position = names.index(before)
    return (*passes[:position], added, *passes[position:])


def resolve_pipeline(
    passes: Passes,
    lowering: LoweringKind = "sliced",
    masking: Masking = "forward",
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
) -> tuple[Pass, ...]:
    """Returns the pipeline that a user asked for.

    Args:
        passes: One of

            - None for the default pipeline,
            - names of passes to add to the default pipeline, separated by commas,
            - a sequence of `Pass` objects, the whole pipeline,
            - the path of a TOML file, with passes to add in a list ``add``, or the whole pipeline in a list ``passes``.
              An entry is a name, or a table with the name as ``pass`` and the fields of the pass. In ``add``, a table
              may also have ``before``, the name of the pass that the new one goes before.
        lowering: The lowering of the default pipeline.
        masking: The masking of the default pipeline.
        bucket_bytes: Upper bound of the size of one gradient reduction in bytes, in the default pipeline.

    Returns:
        The passes in the order in which they run.

    Raises:
        PassError: If a pass does not exist or is there twice, a field is not valid, the file cannot be read, or the
            pipeline does not have exactly one pass that reduces parameters.
    """
    default = pipeline(lowering, masking, bucket_bytes)
    if passes is None:
        return default
    if isinstance(passes, (str, PathLike)):
        text = fspath(passes)
        if isinstance(passes, PathLike) or text.endswith(".toml") or "/" in text:
            return _from_file(Path(text), default)
        return _added(default, [name.strip() for name in text.split(",") if name.strip()])
    whole: tuple[Any, ...] = tuple(passes) if isinstance(passes, Sequence) else (passes,)
    if not all(isinstance(one, Pass) for one in whole):
        raise PassError(f"passes must be a sequence of Pass objects, names, or a TOML file, got {passes!r:.80}.")
    return _checked(whole)


def reducing(passes: Sequence[Pass]) -> Pass:
    """Returns the one pass of a pipeline that reduces parameters. It decides which tensors a worker holds.

    Raises:
        PassError: If the pipeline has none, or several.
    """
    found = [one for one in passes if one.lowering is not None]
    if len(found) != 1:
        has = " and ".join(one.name for one in found) if found else "none"
        choices = ", ".join(sorted(name for name, cls in PASSES.all().items() if cls.lowering is not None))
        raise PassError(f"A pipeline needs exactly one pass that reduces parameters ({choices}); this one has {has}.")
    return found[0]


def bucket_bytes_of(passes: Sequence[Pass]) -> int:
    """Returns the bucket size of the pipeline's `SyncGradients`, or the default size if there is none."""
    return next((one.bucket_bytes for one in passes if isinstance(one, SyncGradients)), DEFAULT_BUCKET_BYTES)


def _from_file(path: Path, default: tuple[Pass, ...]) -> tuple[Pass, ...]:
    content = read_toml(path, "pass", PassError)
    unknown = [key for key in content if key not in ("add", "passes")]
    if unknown or len(content) != 1 or not isinstance(next(iter(content.values())), list):
        raise PassError(
            f"The pass file {str(path)!r} must have one key: `add`, a list of passes to add to the default pipeline, "
            f"or `passes`, a list that is the whole pipeline. It has {', '.join(content) or 'none'}."
        )
    try:
        if "add" in content:
            return _added(default, content["add"])
        made = [_made(entry) for entry in content["passes"]]
        placed = next((one.name for one, before in made if before is not None), None)
        if placed is not None:
            raise PassError(
                f"The pass {placed!r} has `before`, which is for `add`. In `passes`, the order of the list counts."
            )
        return _checked(tuple(one for one, _ in made))
    except PassError as error:
        raise PassError(f"In the pass file {str(path)!r}: {error}") from None


def _added(passes: tuple[Pass, ...], entries: Sequence[Any]) -> tuple[Pass, ...]:
    for entry in entries:
        passes = with_pass(passes, *_made(entry))
    return _checked(passes)


def _made(entry: Any) -> tuple[Pass, str | None]:
    """The pass that an entry of a file names, and the name of the pass that it is to go before."""
    fields = {"pass": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, Mapping) or not isinstance(fields.get("pass"), str):
        raise PassError(f"An entry must be the name of a pass, or a table with its name as `pass`; got {entry!r:.80}.")
    name, before = fields["pass"], fields.get("before")
    if not isinstance(before, (str, type(None))):
        raise PassError(f"`before` of the pass {name!r} must be the name of a pass, got {before!r:.80}.")
    values = {key: value for key, value in fields.items() if key not in ("pass", "before")}
    cls = PASSES[name]
    try:
        return cls(**values), before
    except Exception as error:  # a pass may check its fields, and the user needs its name
        raise PassError(f"The pass {name!r} cannot be made from {values}: {error}.") from error


def _checked(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    nameless = next((type(one).__name__ for one in passes if not hasattr(one, "name")), None)
    if nameless is not None:
        raise PassError(f"The pass {nameless} has no name. Set `name` in the class, or decorate it with register_pass.")
    names = [one.name for one in passes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PassError(f"The pipeline has the pass {twice!r} twice.")
    reducing(passes)
    return passes
