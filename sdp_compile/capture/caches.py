"""What forward keeps by key: in dictionaries that it fills at a first call and then leaves, and in lru_cache."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from sdp_compile.capture.attributes import Place
from sdp_compile.capture.memos import Memos
from sdp_compile.capture.origins import fingerprint, placeholders, sizes_in, tensors_in, what_changes
from sdp_compile.errors import CaptureError
from sdp_compile.ir.kept import Kept
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import frozen


class SizesKept(Exception):
    """Forward keeps what follows from a size that is free. The text is a sentence about it."""


def note_kept(subject: nn.Module, places: Mapping[Place, str], memos: Memos) -> dict[Kept, None]:
    """Makes the captured forward of a model note what it keeps, and refuse what a later call may compute otherwise.

    A graph computes what is kept at each call. So it may follow from sizes, constants, and buffers to which forward
    does not write; in evaluation also from parameters, if the part that has the cache overrides ``train()``, which
    clears it (timm's LeViT).

    Args:
        subject: The copy of the model that is captured.
        places: The attributes with the dictionaries, and the lines that fill them.
        memos: The functions with a cache.

    Returns:
        The entries; they are there when forward has run.
    """
    forward, found = subject.forward, dict[Kept, None]()
    before = {place: _entries(subject, place) for place in places}
    known = {place: set(map(id, tensors_in(list(held.values())))) for place, held in before.items()}

    @functools.wraps(forward)
    def noting(*args: Any, **kwargs: Any) -> Any:
        found.clear()
        memos.begin(subject)
        watching = bool(places) or memos.is_used
        buffers = dict(subject.named_buffers()) if watching else {}
        result = forward(*args, **kwargs)
        if not places and not memos.calls:
            return result
        kept = {name: buffer for name, buffer in subject.named_buffers() if buffers.get(name) is buffer}
        constant = placeholders(kept)
        trained = constant | placeholders(subject.named_parameters())
        for place in places:
            owner, where = submodule(subject, place[0]), _where(place)
            clears = not owner.training and type(owner).train is not nn.Module.train
            for key, value in _entries(subject, place).items():
                if key in before[place] and all(id(tensor) in known[place] for tensor in tensors_in(value)):
                    continue
                sources = trained if clears else constant
                _refuse(subject, value, sources, f"attribute {where}", places[place])
                entry = Kept(f"attribute {where}", repr(frozen(key)), fingerprint(value, sources), places[place], place)
                found[entry] = None
        for call in memos.calls:
            where = f"the cache of {call.name}()"
            _refuse(subject, call.result, constant, where, call.line)
            call.check_unchanged(type(subject))
            if call.key is not None:
                found[Kept(where, call.key, fingerprint(call.result, constant), call.line)] = None
        return result

    vars(subject)["forward"] = noting  # a part of the model may have this name too
    return found


def _refuse(subject: nn.Module, value: Any, constant: Mapping[Any, str], where: str, line: str) -> None:
    for tensor in tensors_in(value):
        why = what_changes(tensor, constant)
        if why:
            at = f" at {line}" if line else ""
            raise CaptureError(
                f"{type(subject).__name__} cannot be captured: its forward keeps {why} for later calls in {where}{at}. "
                "Compute it at each call, or keep it in a buffer."
            )
    if sizes_in(value):
        raise SizesKept(f"{where} keeps what follows from the sizes of a call")


def _entries(subject: nn.Module, place: Place) -> dict[tuple[Any, ...], Any]:
    """Returns what a dictionary holds by its key, or by several for dictionaries in it."""
    return dict(_flat(getattr(submodule(subject, place[0]), place[1]), ()))


def _flat(held: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, value in held.items() if isinstance(held, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, (*path, key))
        else:
            yield (*path, key), value


def _where(place: Place) -> str:
    return f"{place[1]!r} of {f'module {place[0]!r}' if place[0] else 'the model'}"
