"""Masks of transformers that eager execution leaves out where nothing is padded or packed, and capture cannot.

``sdpa_mask`` looks at the values of the padding mask, and its callers at positions that start anew within a row. Where
all are true, and no row holds several sequences, it returns no mask, and the attention is to be causal by itself. A
captured graph always has the mask. Both are the same only if the layer says that it is causal.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from sdp_compile.capture.diagnosis import calling_line

_FUNCTIONS = {"sdpa_mask": "return", "sdpa_attention_forward": "call"}


class SkippedMasks:
    """The causal masks of one run that eager execution may leave out.

    Args:
        kind: The class of the model.
    """

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._masks: list[tuple[Any, str]] = []

    def see(self, frame: FrameType, event: str, result: Any) -> dict[str, str]:
        """Looks at a call or return of a function; returns what is wrong with it and its line, if anything is.

        Args:
            frame: The function's frame.
            event: ``"call"`` or ``"return"``.
            result: What it returns.
        """
        name = frame.f_code.co_name
        if _FUNCTIONS.get(name) != event or not str(frame.f_globals.get("__name__")).startswith("transformers."):
            return {}
        held = frame.f_locals
        if name == "sdpa_mask":
            if held.get("q_length") == held.get("kv_length"):
                if held.get("allow_is_causal_skip") and held.get("padding_mask") is not None:
                    self._masks.append((result, "a row of attention_mask is padded"))
                elif _depends_on_packing(frame.f_back):
                    self._masks.append((result, "position_ids start anew within a row"))
            return {}
        mask, causal = held.get("attention_mask"), held.get("is_causal")
        causal = getattr(held.get("module"), "is_causal", True) if causal is None else causal
        condition = next((words for one, words in self._masks if mask is one), None)
        if causal or mask is None or condition is None:
            return {}
        return {f"masks later tokens only if {condition},": calling_line(self._kind)}


def _depends_on_packing(caller: FrameType | None) -> bool:
    """Whether a function made a mask only because capture does not know that no row holds several sequences."""
    held = {} if caller is None else caller.f_locals
    others = ("attention_mask", "or_mask_function", "and_mask_function", "block_sequence_ids")
    return held.get("packed_sequence_mask") is not None and all(held.get(name) is None for name in others)
