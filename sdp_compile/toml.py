"""Reads and writes plain data as TOML."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdp_compile.errors import PolicyError, SDPError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def to_toml(values: Mapping[str, Any]) -> str:
    """Returns a TOML document.

    Args:
        values: Texts, numbers, booleans, lists of these, and nested mappings and lists of mappings. Values that are
            None and empty mappings are left out.
    """
    return "".join(f"{line}\n" for line in _lines(values, ()))


def read_toml(path: Path, what: str = "policy", error: type[SDPError] = PolicyError) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Args:
        path: The file.
        what: What the file holds, for messages.
        error: The class of the error to raise.

    Raises:
        SDPError: If the file cannot be read or is not valid TOML; the error names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"The {what} file {str(path)!r} does not exist.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"The {what} file {str(path)!r} cannot be read: {problem}.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise error(f"The {what} file {str(path)!r} is not valid TOML: {problem}.") from None


def _lines(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [
        f"{_key(key)} = {_value(value)}"
        for key, value in values.items()
        if value is not None and not isinstance(value, Mapping) and not _is_tables(value)
    ]
    for key, value in values.items():
        name = (*path, key)
        header = ".".join(map(_key, name))
        if isinstance(value, Mapping) and value:
            lines += ["", f"[{header}]", *_lines(value, name)]
        for table in value if _is_tables(value) else ():
            lines += ["", f"[[{header}]]", *_lines(table, name)]
    return lines


def _is_tables(value: Any) -> bool:
    """Whether a value is a list of mappings, which is written as tables."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else _value(key)


def _value(value: Any) -> str:
    # TOML writes basic strings, integers, floats, booleans and arrays of these as JSON does.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
