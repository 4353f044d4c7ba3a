"""From the command line's MODEL to a model and its example inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdp_compile.errors import SDPError
from sdp_compile.models.configuration import Loaded, Size
from sdp_compile.models.inputs import example_inputs
from sdp_compile.models.words import ModelWords, check_words, parse_model

if TYPE_CHECKING:
    from torch import nn


def load(
    spec: str,
    inputs: Sequence[str] = (),
    settings: Sequence[str] = (),
    size: Size | None = None,
    weights: bool = True,
) -> Loaded:
    """Builds the model that a MODEL names.

    Args:
        spec: the MODEL; see `sdp_compile.models.words.FORMS`.
        inputs: example inputs, SHAPE[:DTYPE] or NAME=SHAPE[:DTYPE]; without them the model's own are taken.
        settings: overrides of a transformers configuration, ``key=value``.
        size: the published configuration (``full``) or a small one; by default small with weights, full without.
        weights: False builds a named model on the meta device, where it takes no memory.

    Raises:
        SDPError: one of the words does not fit; the message has close matches.
    """
    check_words(spec, inputs, settings, size)
    loaded = _build(parse_model(spec), tuple(settings), size or ("small" if weights else "full"), weights)
    if not inputs:
        return loaded
    from sdp_compile.models.weightless import inputs_for

    return Loaded(loaded.model, inputs_for(loaded.model, example_inputs(inputs)), loaded.configuration)


def _build(words: ModelWords, settings: tuple[str, ...], size: Size, weights: bool) -> Loaded:
    if words.kind == "factory":
        from sdp_compile.models.factory import factory_model

        return factory_model(words.source, words.name)
    library = "transformers" if words.kind == "file" else words.source
    if importlib.util.find_spec(library) is None:
        raise SDPError(f"{words.source} needs {library}, which is not installed: pip install 'sdp-compile[zoo]'.")
    if library == "timm":
        from sdp_compile.models.timm_models import timm_model

        return timm_model(words.name, size, weights)
    if library == "torchvision":
        from sdp_compile.models.vision import torchvision_model

        return torchvision_model(words.name, size, weights)
    from sdp_compile.models.language import model_of_file, transformers_model

    if words.kind == "file":
        return model_of_file(words.source, settings, size, weights)
    return transformers_model(words.name, settings, size, weights)


def check_inputs(spec: str, model: nn.Module) -> None:
    """Raises `SDPError`, in the command line's own words, where a model without example inputs needs some."""
    import inspect

    from sdp_compile.capture.inputs import example_call

    try:
        example_call(model, None)
    except SDPError:
        raise SDPError(
            f"{spec} has no example inputs: forward{inspect.signature(model.forward)}. Return a pair of the model and "
            "its inputs, or name them with --input SHAPE[:DTYPE], such as --input 2x3x64x64."
        ) from None
