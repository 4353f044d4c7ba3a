"""Transformers configurations: a type's published, default or small one, a file's, the hub's, and changes to them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdp_compile.capture.diagnosis import first_line
from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.configuration import Configuration, Size
from sdp_compile.models.inputs import parse_setting
from sdp_compile.models.published import published
from sdp_compile.models.small import small_fields


def default_config(
    model_type: str, size: Size, settings: tuple[str, ...], labels: int | None = None
) -> tuple[Any, Configuration]:
    """Returns the configuration of a type with the user's ``settings``, and where it comes from.

    ``labels`` is the number of classes of the published model. Raises `SDPError` for a field that does not exist.
    """
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    spec = f"transformers:{model_type}"
    overrides = _overrides(spec, kind(), settings)
    if size == "small":
        fields, origin = small_fields(kind()), Configuration("small", changes=settings)
    else:
        checkpoint = published(model_type)
        name, fields = (kind.__name__, {}) if checkpoint is None else (checkpoint[0], dict(checkpoint[1]))
        fields |= {} if labels is None else {"num_labels": labels}
        origin = Configuration("default" if checkpoint is None else "published", name, settings)
    return _accepted(spec, origin, lambda: kind(**_merged(fields, overrides))), origin


def changed(
    spec: str, config: Any, origin: Configuration, size: Size, settings: tuple[str, ...]
) -> tuple[Any, Configuration]:
    """Returns a given configuration with the user's ``settings``, made small first where ``size`` says so."""
    overrides = _overrides(spec, config, settings)
    fields = small_fields(config) if size == "small" else {}
    origin = Configuration("small" if size == "small" else origin.origin, origin.source, settings)
    before = config.to_dict()
    after = _merged(_merged(before, fields), overrides)
    return _accepted(spec, origin, lambda: type(config).from_dict(_shortened(before, after, config))), origin


def file_config(path: str) -> tuple[Any, str]:
    """Returns the configuration in a ``config.json`` or in the folder that holds one, and the file's path."""
    from transformers import CONFIG_MAPPING

    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SDPError(f"{file} cannot be read as JSON: {first_line(error)}.") from None
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type is None:
        raise SDPError(f"{file} has no model_type, so it is not a transformers configuration.")
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(str(model_type), list(CONFIG_MAPPING))
        raise SDPError(
            f"{file}: transformers has no model type {model_type!r}.{hint} For a model with code of its own, write a "
            "factory."
        )
    config = _accepted(str(file), Configuration("file"), lambda: CONFIG_MAPPING[model_type].from_dict(fields))
    return config, str(file)


def hub_config(name: str) -> Any:
    """Returns the configuration of a model on the Hugging Face hub. Raises `SDPError` where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:
        reason = first_line(error).rstrip(".")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    why = "HF_HUB_OFFLINE is set, and it is not in the local cache" if offline else reason
    raise SDPError(
        f"transformers:{name}: the configuration cannot be read from the Hugging Face hub ({why}). Connect to the hub "
        "and check the name, pass a folder that holds the config.json, or name a type such as transformers:gpt2."
    )


def _overrides(spec: str, config: Any, settings: tuple[str, ...]) -> dict[str, Any]:
    """Returns the overrides as fields, under the names that the configuration itself uses."""
    aliases: Mapping[str, str] = getattr(config, "attribute_map", {})
    known = [*config.to_dict(), *aliases]
    fields: dict[str, Any] = {}
    for key, value in map(parse_setting, settings):
        first, *rest = key.split(".")
        if first not in known and not hasattr(config, first):
            raise SDPError(f"{spec} has no setting {key!r}.{did_you_mean(key, known)}")
        for name in reversed(rest):
            value = {name: value}
        fields = _merged(fields, {aliases.get(first, first): value})
    return fields


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``fields`` with ``changes``, nested mappings merged."""
    result = dict(fields)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def _shortened(before: Mapping[str, Any], after: dict[str, Any], config: Any) -> dict[str, Any]:
    """Returns ``after`` with lists of one value per layer cut to the new number of layers."""
    name = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    old, new = before.get(name), after.get(name)
    result = dict(after)
    if isinstance(old, int) and isinstance(new, int) and new < old:
        for key, value in before.items():
            if isinstance(value, list) and len(value) == old and after.get(key) == value:
                result[key] = value[:new]
    for key in getattr(config, "sub_configs", {}):
        if isinstance(before.get(key), dict) and isinstance(after.get(key), dict):
            result[key] = _shortened(before[key], after[key], getattr(config, key, config))
    return result


def _accepted(spec: str, origin: Configuration, make: Any) -> Any:
    try:
        return make()
    except Exception as error:
        raise SDPError(
            f"{spec}: the {origin.describe()} is not accepted: {first_line(error.__cause__ or error).rstrip('.')}. "
            "Change it with --set key=value."
        ) from error
