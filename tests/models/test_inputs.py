"""``--input`` and ``--set`` in words."""

import pytest

from sdp_compile.errors import SDPError
from sdp_compile.models.inputs import Input, parse_input, parse_setting


def test_inputs_and_settings_in_words() -> None:
    assert parse_input("2x3x8") == Input("", (2, 3, 8), "float32")
    assert parse_input("input_ids=2,16:long") == Input("input_ids", (2, 16), "int64")
    assert parse_input("scalar:float64") == Input("", (), "float64")
    with pytest.raises(SDPError, match="size 0"):
        parse_input("0x3")
    assert parse_setting("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_setting("hidden_act=relu") == ("hidden_act", "relu")
    assert parse_setting("use_cache=false") == ("use_cache", False)
