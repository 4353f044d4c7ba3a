"""Makes questions about compilation get the answer of eager execution."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FunctionType

import torch.compiler

from sdp_compile.capture.questions import QUESTIONS
from sdp_compile.capture.users import is_asked_by_user


def answer(original: bool) -> bool:
    """Returns False if the user's code asks, and the original answer if torch does."""
    return original and not is_asked_by_user(sys._getframe(2))


@contextlib.contextmanager
def as_in_eager(wanted: bool) -> Iterator[None]:
    """Within this context, the user's code is told that it is neither compiled nor exported.

    The functions get another code, because models keep them under other names.

    Args:
        wanted: Whether to change anything.
    """
    codes = {name: getattr(torch.compiler, name).__code__ for name in (QUESTIONS if wanted else ())}
    scope = vars(torch.compiler)
    for name, code in codes.items():
        scope[f"_sdp_original_{name}"] = FunctionType(code, scope, name)
        getattr(torch.compiler, name).__code__ = _REPLACEMENTS[name].__code__
    try:
        yield
    finally:
        for name, code in codes.items():
            getattr(torch.compiler, name).__code__ = code
            del scope[f"_sdp_original_{name}"]


def _is_compiling() -> bool:
    from sdp_compile.capture.eager import answer

    return answer(_sdp_original_is_compiling())  # type: ignore[name-defined]  # noqa: F821


def _is_dynamo_compiling() -> bool:
    from sdp_compile.capture.eager import answer

    return answer(_sdp_original_is_dynamo_compiling())  # type: ignore[name-defined]  # noqa: F821


def _is_exporting() -> bool:
    from sdp_compile.capture.eager import answer

    return answer(_sdp_original_is_exporting())  # type: ignore[name-defined]  # noqa: F821


_REPLACEMENTS = {
    "is_compiling": _is_compiling,
    "is_dynamo_compiling": _is_dynamo_compiling,
    "is_exporting": _is_exporting,
}
