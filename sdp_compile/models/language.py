"""Transformers models by type, hub name or configuration file; weights are random, and never downloaded."""

from __future__ import annotations

from typing import Any

from torch import nn

from sdp_compile.capture.diagnosis import first_line
from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.configuration import Configuration, Loaded, Size
from sdp_compile.models.language_inputs import example_inputs
from sdp_compile.models.transformers_config import changed, default_config, file_config, hub_config
from sdp_compile.models.weightless import build, inputs_for

# The tasks by preference: the first that a type has a model for says which class is built.
_TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "CAUSAL_LM",
    "CTC",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "OBJECT_DETECTION",
    "SEQUENCE_CLASSIFICATION",
    "",
)

_LABELS = {
    "IMAGE_CLASSIFICATION": 1000,  # ImageNet
    "VIDEO_CLASSIFICATION": 400,  # Kinetics
    "AUDIO_CLASSIFICATION": 527,  # AudioSet
    "SEMANTIC_SEGMENTATION": 150,  # ADE20K
}
"""Classes of the data set that a task's published models are trained on; configuration classes default to 2."""


def transformers_model(name: str, settings: tuple[str, ...] = (), size: Size = "small", weights: bool = True) -> Loaded:
    """Builds the model that a name stands for.

    Args:
        name: a type (``llama``, ``bert``, ``t5``, ``vit``, ``whisper``, ...), or a name on the Hugging Face hub, which
            contains a slash.
        settings: overrides of the configuration, ``key=value``; ``text_config.hidden_size`` reaches into a nested one.
        size: ``full`` for the published configuration, ``small`` for two layers.
        weights: False builds on the meta device.

    Raises:
        SDPError: no such type, name or field, or the configuration does not make a model.
    """
    spec = f"transformers:{name}"
    if "/" in name:
        config = hub_config(name)
        return _model(spec, config, Configuration("published", name), settings, size, weights)
    class_name, task = _class_name(name)
    config, origin = default_config(name, size, settings, _LABELS.get(task))
    return _built(spec, class_name, config, origin, size, weights)


def model_of_file(path: str, settings: tuple[str, ...] = (), size: Size = "full", weights: bool = True) -> Loaded:
    """Builds the model of a transformers ``config.json``, or of the folder that holds one; see `transformers_model`."""
    config, source = file_config(path)
    return _model(path, config, Configuration("file", source), settings, size, weights)


def _model(
    spec: str, config: Any, origin: Configuration, settings: tuple[str, ...], size: Size, weights: bool
) -> Loaded:
    """Builds the class that a given configuration names, or that of its type."""
    import transformers

    named = next(iter(config.architectures or ()), "")
    class_name = named if hasattr(transformers, named) else _class_name(config.model_type)[0]
    config, origin = changed(spec, config, origin, size, settings)
    return _built(spec, class_name, config, origin, size, weights)


def _built(spec: str, class_name: str, config: Any, origin: Configuration, size: Size, weights: bool) -> Loaded:
    import transformers

    kind = getattr(transformers, class_name)
    if getattr(kind, "_can_set_experts_implementation", bool)():
        config._experts_implementation = "batched_mm"  # the default, a fused operator, knows no float64
    try:
        model, notes = build(lambda: _trained(kind, config), weights, spec)
    except Exception as error:
        raise SDPError(
            f"{spec}: {class_name} cannot be built from the {origin.describe()}: {first_line(error)}. "
            "Change it with --set key=value."
        ) from error
    # The model may have changed its configuration: its own copy counts.
    inputs = inputs_for(model, example_inputs(model, config, size))
    return Loaded(model, inputs, Configuration(origin.origin, origin.source, origin.changes, notes))


def _trained(kind: Any, config: Any) -> nn.Module:
    model: nn.Module = kind(config)
    return model.train()


def _class_name(model_type: str) -> tuple[str, str]:
    """Returns the class to build for a type, and its task. Raises `SDPError` with close matches."""
    from transformers.models.auto import configuration_auto, modeling_auto

    known = getattr(configuration_auto, "CONFIG_MAPPING_NAMES")  # noqa: B009 (not among its declared names)
    if model_type not in known:
        raise SDPError(f"transformers has no model type {model_type!r}.{did_you_mean(model_type, known)}")
    for task in _TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES", {})
        name = names.get(model_type)
        if name:
            return str(name if isinstance(name, str) else name[0]), task
    raise SDPError(
        f"transformers:{model_type} is a configuration without a model of its own; name the type of one of its parts, "
        "or give a factory."
    )
