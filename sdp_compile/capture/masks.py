"""Masks of transformers that eager execution leaves out where nothing is padded, and capture cannot.

``sdpa_mask`` looks at the values of the padding mask. Where all are true, it returns no mask, and the attention is to
be causal by itself. A captured graph always has the mask. Both are the same only if the layer says that it is causal.
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
        self._masks: list[Any] = []

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
            square = held.get("q_length") == held.get("kv_length")
            if held.get("allow_is_causal_skip") and held.get("padding_mask") is not None and square:
                self._masks.append(result)
            return {}
        mask, causal = held.get("attention_mask"), held.get("is_causal")
        causal = getattr(held.get("module"), "is_causal", True) if causal is None else causal
        if causal or mask is None or not any(mask is one for one in self._masks):
            return {}
        return {"masks later tokens only if a row of attention_mask is padded,": calling_line(self._kind)}
