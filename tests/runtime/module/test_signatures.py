"""Methods of SDPModule take what the functions of the same name take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import sdp_compile as sdp
from sdp_compile.runtime.state.full_state import full_state_dict

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "clip_grad_norm_": sdp.clip_grad_norm_,
    "full_optimizer_state_dict": sdp.full_optimizer_state_dict,
    "load_full_optimizer_state_dict": sdp.load_full_optimizer_state_dict,
    "full_state_dict": full_state_dict,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_method_and_its_function_have_one_signature(name: str) -> None:
    method = inspect.signature(getattr(sdp.SDPModule, name), eval_str=True)
    function = inspect.signature(FUNCTIONS[name], eval_str=True)
    assert list(method.parameters.values())[1:] == list(function.parameters.values())[1:]
    assert method.return_annotation == function.return_annotation
