"""Makes what forward assigns to buffers part of the graph.

``self.seen = self.seen + x`` binds a new tensor to a name. Export turns this into a copy for the buffers of the model
itself, and drops it without a word for those of the modules inside.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.nn.modules import module as nn_module

from sdp_compile.capture.diagnosis import Resized, calling_line
from sdp_compile.errors import CaptureError


def copy_assigned(subject: nn.Module) -> None:
    """Makes the graph of ``subject`` end with copies of what its forward assigned to buffers into these buffers."""
    forward, registered = subject.forward, dict(subject._buffers)
    # Export miscounts the model's own buffers if some are None, so these are there during forward only.
    present = {name: buffer for name, buffer in registered.items() if buffer is not None}
    _replace(subject._buffers, present)

    @functools.wraps(forward)
    def copying(*args: Any, **kwargs: Any) -> Any:
        _replace(subject._buffers, {**registered, **subject._buffers})
        before = [(path, module, dict(module._buffers)) for path, module in subject.named_modules()]
        with _noted_lines(type(subject)) as lines:
            result = forward(*args, **kwargs)
        _copy_back(type(subject).__name__, before, lines)
        _replace(subject._buffers, {name: buffer for name, buffer in subject._buffers.items() if buffer is not None})
        return result

    vars(subject)["forward"] = copying  # a part of the model may have this name too


def _replace(registry: dict[str, torch.Tensor | None], entries: Mapping[str, torch.Tensor | None]) -> None:
    """Replaces the entries in place: export holds on to the registry itself."""
    new = dict(entries)
    registry.clear()
    registry.update(new)


_Lines = dict[tuple[int, str], str]


@contextlib.contextmanager
def _noted_lines(kind: type[nn.Module]) -> Iterator[_Lines]:
    """Notes where buffers are assigned, by the module's identity and the name, in place of what export does there."""
    lines: _Lines = {}
    hooks = nn_module._global_buffer_registration_hooks
    others = dict(hooks)

    def note(module: nn.Module, name: str, _buffer: Any) -> None:
        lines[id(module), name] = calling_line(kind)

    for key, hook in others.items():
        if getattr(hook, "__module__", "").startswith("torch._functorch"):
            del hooks[key]
    handle = nn_module.register_module_buffer_registration_hook(note)
    try:
        yield lines
    finally:
        handle.remove()
        hooks.update(others)


def _copy_back(name: str, before: list[tuple[str, nn.Module, dict[str, torch.Tensor | None]]], lines: _Lines) -> None:
    originals = [buffer for _, _, buffers in before for buffer in buffers.values() if buffer is not None]
    places, memory = Counter(map(id, originals)), set(map(_memory, originals))
    copies = []
    for path, module, buffers in before:
        for key, old in buffers.items():
            new = module._buffers.get(key, old)
            if new is old:
                continue
            buffer = f"its buffer '{f'{path}.{key}'.lstrip('.')}'"
            line = lines.get((id(module), key))
            at = f" at {line}" if line else ""
            if old is None or new is None or places[id(old)] > 1:
                what = "is None before" if old is None else "becomes None" if new is None else "has several names"
                raise CaptureError(
                    f"{name} cannot be captured: its forward assigns to {buffer}{at}, which {what}. Register a tensor "
                    "of the final shape under one name, and write into it with copy_."
                )
            if _described(old) != _described(new):
                raise Resized(f"its forward makes {buffer} a {_described(new)} instead of a {_described(old)}{at}")
            # What shares memory with a buffer must be read before that buffer is written.
            copies.append((module, key, old, new.clone() if _memory(new) in memory else new))
    for module, key, old, new in copies:
        _write(old, new)
        module._buffers[key] = old


def _write(buffer: torch.Tensor, value: torch.Tensor) -> None:
    """Adds a copy of ``value`` into ``buffer`` to the graph. Nodes that read ``buffer`` still mean its old value."""
    mode = get_proxy_mode()
    assert mode is not None, "forward is not being captured"
    target, source = (get_proxy_slot(tensor, mode.tracer).proxy.node for tensor in (buffer, value))
    node = mode.tracer.create_node("call_function", torch.ops.aten.copy_.default, (target, source), {})
    node.meta = dict(source.meta)


def _described(tensor: torch.Tensor) -> str:
    sizes = ", ".join(str(size) if isinstance(size, int) else "?" for size in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')}[{sizes}]"


def _memory(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()._cdata
