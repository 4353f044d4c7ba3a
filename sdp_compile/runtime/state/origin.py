"""Says in a ``state_dict()`` whose slices it holds, and refuses to load those of another worker.

The slices of all workers have the same names and often the same shapes, so PyTorch would load any of them anywhere. The
mark is in ``_metadata``, where PyTorch keeps the versions of modules: `torch.save` and `copy.deepcopy` keep it, and the
keys stay the original's. A key of its own (``get_extra_state``) would be one that the original does not have, and that
safetensors cannot store. Plain dict copies and safetensors files lose the mark, so a state without it is refused if it
holds anything that differs between workers.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import ItemsView, KeysView, Mapping
from functools import cached_property, partial
from types import FrameType
from typing import Any

from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.wrapping import in_checkpoint

KEY = "sdp_compile"
"""The key of the mark in the metadata of a module, and in the parameter groups of an optimizer's state."""


def mark_of(holdings: Holdings) -> str:
    """Returns the text that says whose slices a state holds. Two states fit if the texts agree after ``slices``."""
    plan = holdings.plan
    return f"worker {holdings.rank} of {plan.workers}, plan {plan.digest[:12]}, slices {holdings.digest}"


def fits(mark: object, holdings: Holdings) -> bool:
    """Whether a mark is that of a worker with the same slices."""
    return str(mark).rpartition(" slices ")[2] == holdings.digest


def described(mark: object) -> str:
    """Returns a mark as part of a sentence, such as ``worker 0 of 4 (plan 1f2e3d4c5b6a)``."""
    worker, _, plan = str(mark).partition(", slices ")[0].partition(", plan ")
    return f"{worker} (plan {plan})"


class Origin:
    """Marks the states of a compiled module and checks those that it loads.

    Args:
        holdings: What the module holds.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self

    def follow(self, holdings: Holdings) -> None:
        """Marks and checks states as those of other slices from now on."""
        self._holdings = holdings
        vars(self).pop("is_cut", None)

    @cached_property
    def is_cut(self) -> bool:
        """Whether the workers hold different slices."""
        plan = self._holdings.plan
        return plan.workers > 1 and any(plan.is_cut(name) for name in plan.state)

    def watch(self, module: nn.Module) -> None:
        """Marks and checks the states of a module and its submodules from now on.

        Args:
            module: The compiled module.
        """
        for path, part in module.named_modules():
            part.register_state_dict_post_hook(partial(self._mark))
            part.register_load_state_dict_pre_hook(partial(self._check, path))

    def _mark(self, module: nn.Module, state: Mapping[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        if self.is_cut:
            _refuse_checkpoint(sys._getframe(1), deep=True)
            metadata[KEY] = mark_of(self._holdings)

    def _check(
        self, path: str, module: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any], *_: Any
    ) -> None:
        if not self.is_cut:
            return
        if KEY in metadata:
            if not fits(metadata[KEY], self._holdings):
                raise SDPError(
                    f"This state_dict() is that of {described(metadata[KEY])}, but this module is "
                    f"{described(mark_of(self._holdings))}, which holds other slices. Load the file that this rank "
                    "saved, or save full_state_dict() and load it with load_full_state_dict() on every rank."
                )
            return
        self._check_unmarked(
            {
                f"{path}.{key[len(prefix) :]}".lstrip("."): value
                for key, value in state.items()
                if key.startswith(prefix) and isinstance(value, Tensor)
            }
        )

    def _check_unmarked(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises `SDPError` if a state without a mark holds a tensor that differs between the workers."""
        plan, rank = self._holdings.plan, self._holdings.rank
        cut = {
            name: value for name, value in tensors.items() if name in plan.aliases and plan.is_cut(plan.aliases[name])
        }
        if not cut:
            return
        wrong = [name for name in cut if self._holdings.shape(plan.aliases[name]) != tuple(cut[name].shape)]
        if wrong and all(plan.state[plan.aliases[name]].shape == tuple(value.shape) for name, value in cut.items()):
            raise SDPError(
                f"This state has the shapes of the original model ({wrong[0]!r} is {list(cut[wrong[0]].shape)}), but "
                f"this module is worker {rank} of {plan.workers} and holds slices. Load it with load_full_state_dict()."
            )
        raise SDPError(
            f"This state does not say which worker's slices it holds (as for {next(iter(cut))!r}). A plain dict copy "
            "or a safetensors file of state_dict() loses that: use copy.deepcopy() or torch.save(), and for averages "
            "of weights torch.optim.swa_utils.AveragedModel(model). For the weights of the whole model use "
            "full_state_dict() and load_full_state_dict()."
        )


class SliceState(OrderedDict[str, Any]):
    """A worker's ``state_dict()``, which torch.distributed.checkpoint refuses. Pickles and copies are plain.

    It has the two methods of a ``Stateful``, because a checkpoint calls them first, outside of its collectives.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metadata: OrderedDict[str, Any] = OrderedDict()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]  # the view's own class is private
        """Returns the names and values; raises `SDPError` if torch.distributed.checkpoint asks."""
        _refuse_checkpoint(sys._getframe(1))
        return super().items()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """Returns the names; raises `SDPError` if torch.distributed.checkpoint asks."""
        _refuse_checkpoint(sys._getframe(1))
        return super().keys()

    def update(self, *others: Any, **values: Any) -> None:
        """Replaces values; the state keeps its mark only if those come from a state with the same mark."""
        if values or any(_marks(other) != _marks(self) for other in others):
            for metadata in self._metadata.values():
                metadata.pop(KEY, None)
        super().update(*others, **values)

    def state_dict(self) -> SliceState:
        """Returns this state; raises `SDPError` if torch.distributed.checkpoint asks."""
        _refuse_checkpoint(sys._getframe(1))
        return self

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces values by those of ``state``; raises `SDPError` if torch.distributed.checkpoint asks."""
        _refuse_checkpoint(sys._getframe(1))
        self.update(state)

    def __reduce__(self) -> tuple[Any, ...]:
        _refuse_checkpoint(sys._getframe(1))
        return OrderedDict, (), vars(self).copy(), None, iter(super().items())


def _marks(state: object) -> set[object]:
    """Returns the marks in a state."""
    return {metadata[KEY] for metadata in getattr(state, "_metadata", {}).values() if KEY in metadata}


def _refuse_checkpoint(frame: FrameType, deep: bool = False) -> None:
    if in_checkpoint(frame, deep):
        raise SDPError(
            "torch.distributed.checkpoint would keep one worker's slices of each tensor and drop the others', because "
            "they have the same names. Call sdp.save_checkpoint() and sdp.load_checkpoint(), or save and load "
            "sdp.CheckpointState(model, optimizer) in place of state_dict()."
        )
