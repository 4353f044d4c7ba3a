"""Tells the code and the classes of the user from those of torch and what it is built on."""

from __future__ import annotations

import os
import sys
import sysconfig
from argparse import Namespace
from types import FrameType, SimpleNamespace

from sdp_compile.capture.diagnosis import is_user_file

_STANDARD = (sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep)
_BELOW_TORCH = ("sympy", "mpmath", "numpy", "networkx")  # packages that torch is built on
_NOT_USERS = frozenset({*sys.stdlib_module_names, "torch", "sdp_compile", *_BELOW_TORCH})
_BELOW_TORCH_PATHS = tuple(os.sep.join(("", "site-packages", name, "")) for name in _BELOW_TORCH)


def is_users(filename: str) -> bool:
    """Whether a file is source of the user or a model library: not of torch, what it is built on, or this package.

    Source without a file is the user's: ``python -c`` and ``exec`` call it ``<string>``.
    """
    return filename == "<string>" or (
        is_user_file(filename)
        and ("site-packages" in filename or not filename.startswith(_STANDARD))
        and not any(part in filename for part in _BELOW_TORCH_PATHS)
    )


def is_of_users(kind: type) -> bool:
    """Whether a class is the user's: objects of the standard library, such as loggers, keep caches of their own."""
    package = kind.__module__.partition(".")[0]
    return kind in (SimpleNamespace, Namespace) or package == "__main__" or package not in _NOT_USERS


def is_asked_by_user(frame: FrameType | None) -> bool:
    """Whether the user's code asks a question, itself or through a function of torch that passes it on."""
    while frame is not None and frame.f_code.co_name in PASSING and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and is_users(frame.f_code.co_filename)


PASSING = frozenset({"is_compiling", "is_dynamo_compiling", "is_exporting", "is_torchdynamo_compiling"})
"""Names of functions of torch that ask each other whether there is a compiler."""
