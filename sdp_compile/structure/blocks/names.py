"""The names of blocks and the layers that they form, from the module hierarchy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import fx, nn

from sdp_compile.ir.program import StateTensor

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def unique_names(units: Sequence[Collection[str]], state: Mapping[str, StateTensor]) -> list[str]:
    """Returns for each unit the path of the module that contains its parameters, made unique.

    The two branches of one transformer layer share the layer: each is named after its submodule with most parameters.
    """
    names = [_common_module(unit) for unit in units]
    count = Counter(names)
    names = [
        _heaviest_child(name, unit, state) if count[name] > 1 else name for name, unit in zip(names, units, strict=True)
    ]
    count, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        if count[name] > 1:
            names[index] = f"{name}#{seen[name]}"
            seen[name] += 1
    return names


def _common_module(names: Iterable[str]) -> str:
    return _common_path(name.rpartition(".")[0] for name in names)


def _common_path(paths: Iterable[str]) -> str:
    split = [path.split(".") for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _heaviest_child(module: str, unit: Collection[str], state: Mapping[str, StateTensor]) -> str:
    """Returns the submodule that holds more than half of the unit's parameters, else the module itself."""
    prefix = f"{module}." if module else ""
    sizes: Counter[str] = Counter()
    for name in unit:
        child, dot, _ = name.removeprefix(prefix).partition(".")
        if dot:
            sizes[child] += state[name].numel
    if not sizes:
        return module
    child, size = sizes.most_common(1)[0]
    return prefix + child if 2 * size > sum(state[name].numel for name in unit) else module


def layer_names(names: Sequence[str], adds: Sequence[Sequence[fx.Node]], skeleton: nn.Module) -> list[str]:
    """For each block the module whose branches belong together, the block's own name where there is none.

    That is the module that does several of the adds, as a GPT-2 layer does, or whose submodules of different classes do
    one each, as BERT's. A stage of equal submodules is no layer, nor are containers and the whole model.
    """
    classes = {path: type(module) for path, module in skeleton.named_modules()}
    holders = [_common_path(_holder(add, classes) for add in block) for block in adds]
    below: dict[str, list[str]] = {}
    for holder in holders:
        for ancestor in _ancestors(holder):
            below.setdefault(ancestor, []).append(holder)

    def layer_of(holder: str) -> str | None:
        if holder and below[holder].count(holder) > 1:
            return holder
        wider = (path for path in _ancestors(holder) if classes.get(path) not in _CONTAINERS)
        nearest = next((path for path in wider if len(below[path]) > 1), "")
        kinds = [classes.get(inner) for inner in below.get(nearest, ())]
        return nearest if nearest and len(set(kinds)) == len(kinds) else None

    return [layer_of(holder) or name for name, holder in zip(names, holders, strict=True)]


def _ancestors(path: str) -> Iterator[str]:
    """Yields the path and those of the modules around it, up to the whole model."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _holder(node: fx.Node, classes: Mapping[str, type]) -> str:
    """Returns the innermost module that made the node in its forward; containers do not count."""
    for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())):
        if classes.get(path) not in (None, *_CONTAINERS):
            return str(path)
    return ""
