"""Containers: plain modules that hold a worker's tensors under the original model's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sdp_compile.capture.clone import canonical_names, is_persistent
from sdp_compile.capture.originals import originals_of
from sdp_compile.ir.program import Capture
from sdp_compile.runtime.parts import Part, part_of
from sdp_compile.runtime.python_state import PythonState


def register_tensors(
    root: nn.Module, capture: Capture, tensors: Mapping[str, Tensor], state: PythonState | None = None
) -> None:
    """Registers tensors in ``root`` where the original model holds them.

    The order is the original's, tied tensors are registered in every place, and a module that is used twice is one
    container. What the original does not have, such as constants, masks and
    unowned parts, becomes a buffer outside ``state_dict()`` in the container that its name says.

    Names may be those of attributes of ``root``, so everything is put into the registries of ``nn.Module`` themselves.

    Args:
        root: The module to fill.
        capture: The original model.
        tensors: The worker's tensors by canonical name.
        state: The original's plain attributes.
    """
    canonical = canonical_names(capture.skeleton)
    state = PythonState(capture.skeleton) if state is None else state
    _mirror(capture.skeleton, "", root, canonical, tensors, state, {})
    for name in sorted(tensors.keys() - set(canonical.values())):
        path, _, key = name.rpartition(".")
        _put_buffer(_container(root, path), key, tensors[name], persistent=False)
    originals_of(state.skeleton).note_compiled(root)


def _container(root: nn.Module, path: str) -> nn.Module:
    """Returns the container at a path; creates it if no tensor of the original is held there."""
    for key in filter(None, path.split(".")):
        if key not in root._modules:
            root._modules[key] = Part()
        child = root._modules[key]
        assert child is not None
        root = child
    return root


def _mirror(
    source: nn.Module,
    prefix: str,
    target: nn.Module,
    canonical: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    state: PythonState,
    made: dict[int, nn.Module],
) -> None:
    made[id(source)] = target
    for key in source._parameters:
        name = canonical.get(prefix + key, "")
        if name in tensors:
            target._parameters[key] = tensors[name]  # type: ignore[assignment]
        elif source._parameters[key] is None:
            target._parameters[key] = None
    for key in source._buffers:
        name = canonical.get(prefix + key, "")
        if name in tensors:
            _put_buffer(target, key, tensors[name], is_persistent(source, key))
    for key, child in source._modules.items():
        if child is None:
            target._modules[key] = None
            continue
        container = made.get(id(child))
        if container is None:
            container = part_of(type(child))()
            _mirror(child, f"{prefix}{key}.", container, canonical, tensors, state, made)
        target._modules[key] = container
    state.mirror(target, prefix[:-1])


def _put_buffer(target: nn.Module, key: str, tensor: Tensor, persistent: bool) -> None:
    target._buffers[key] = tensor
    if not persistent:
        target._non_persistent_buffers_set.add(key)


def reregister_tensors(root: nn.Module, capture: Capture, tensors: Mapping[str, Tensor], before: Iterable[str]) -> None:
    """Registers other tensors in place of those that `register_tensors` has registered, in the same containers.

    What else was registered since stays.

    Args:
        root: The module.
        capture: The original model.
        tensors: The worker's tensors by canonical name.
        before: The names of those until now; some of them may have no successor.
    """
    canonical = canonical_names(capture.skeleton)
    for path, source in capture.skeleton.named_modules():
        target, prefix = _container(root, path), f"{path}." if path else ""
        held = {key: tensors.get(canonical.get(prefix + key, "")) for key in (*source._parameters, *source._buffers)}
        for registry, keys in ((target._parameters, source._parameters), (target._buffers, source._buffers)):
            own: dict[str, Any] = {key: held[key] for key in keys if held[key] is not None or keys[key] is None}
            others = {key: value for key, value in registry.items() if key not in keys}
            own.update(others)
            registry.clear()
            registry.update(own)
        target._non_persistent_buffers_set |= {key for key in source._buffers if not is_persistent(source, key)}
    for name in sorted({*tensors, *before} - set(canonical.values())):
        path, _, key = name.rpartition(".")
        if name in tensors:
            _put_buffer(_container(root, path), key, tensors[name], persistent=False)
        else:
            _container(root, path)._buffers.pop(key, None)


def retie(places: Mapping[int, list[tuple[nn.Module, str]]]) -> bool:
    """Puts the first tensor of each list of places in all of its places. Returns whether any had been replaced."""
    changed = False
    for identity, (first, *others) in places.items():
        tensor = _get(*first)
        changed |= id(tensor) != identity
        for module, key in others:
            registry = module._parameters if key in module._parameters else module._buffers
            registry[key] = tensor  # type: ignore[assignment]
    return changed


def tensor_places(root: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Returns the places, (module, key), in which each tensor is registered, by the identity of the tensor."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in root.modules():
        for key in (*module._parameters, *module._buffers):
            tensor = _get(module, key)
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, key))
    return places


def _get(module: nn.Module, key: str) -> Tensor | None:
    return module._parameters[key] if key in module._parameters else module._buffers[key]
