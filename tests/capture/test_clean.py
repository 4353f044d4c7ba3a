"""Cleaning: programs before and after."""

from __future__ import annotations

import inspect

import pytest

from sdp_compile.capture.clean import clean, is_mutation
from tests.graph_text import parse, text_of


def cleaned(text: str) -> str:
    graph = parse(text)
    clean(graph)
    graph.lint()
    return text_of(graph)


BEFORE_AND_AFTER = {
    "assertions": (
        """
        x: f32[4] = placeholder
        checked = aten._assert_tensor_metadata(x, None, None, torch.float32)
        size: 4 = aten.sym_size.int(x, 0)
        positive: b8 = gt(size, 0)
        held = aten._assert_scalar(positive, 'size must be positive')
        y: f32[4] = aten.relu(x)
        return y""",
        """
        x: f32[4] = placeholder
        y: f32[4] = aten.relu(x)
        return y""",
    ),
    "identities": (
        """
        x: f32[4] = placeholder
        same: f32[4] = aten.alias(x)
        lifted: f32[4] = aten.lift_fresh(same)
        y: f32[4] = aten.relu(lifted)
        return y, same""",
        """
        x: f32[4] = placeholder
        y: f32[4] = aten.relu(x)
        return y, x""",
    ),
    "copies of a constant": (
        """
        x: f32[4] = placeholder
        c: f32[4] = get_attr[_constant_0]
        fresh: f32[4] = aten.lift_fresh_copy(c)
        apart: f32[4] = aten.detach_(fresh)
        y: f32[4] = aten.add.Tensor(x, apart)
        return y""",
        """
        x: f32[4] = placeholder
        c: f32[4] = get_attr[_constant_0]
        y: f32[4] = aten.add.Tensor(x, c)
        return y""",
    ),
    "a copy of a constant that is written to": (
        """
        c: f32[4] = get_attr[_constant_0]
        fresh: f32[4] = aten.lift_fresh_copy(c)
        y: f32[4] = aten.relu_(fresh)
        return y""",
        """
        c: f32[4] = get_attr[_constant_0]
        fresh: f32[4] = aten.lift_fresh_copy(c)
        y: f32[4] = aten.relu_(fresh)
        return y""",
    ),
    "a detached activation": (
        """
        x: f32[4] = placeholder
        apart: f32[4] = aten.detach(x)
        return apart""",
        """
        x: f32[4] = placeholder
        apart: f32[4] = aten.detach(x)
        return apart""",
    ),
    "a copy of a buffer onto itself": (
        """
        count: f32[] = get_attr
        once: f32[] = aten.add_.Tensor(count, 1)
        twice: f32[] = aten.mul_.Tensor(once, 2)
        copied: f32[] = aten.copy_(count, twice)
        return""",
        """
        count: f32[] = get_attr
        once: f32[] = aten.add_.Tensor(count, 1)
        twice: f32[] = aten.mul_.Tensor(once, 2)
        return""",
    ),
    "a buffer that forward assigns, read before": (
        """
        x: f32[4] = placeholder
        seen: f32[4] = get_attr
        y: f32[4] = aten.mul.Tensor(x, seen)
        new: f32[4] = aten.add.Tensor(seen, 1)
        copied: f32[4] = aten.copy_(seen, new)
        return y, seen""",
        """
        x: f32[4] = placeholder
        seen: f32[4] = get_attr
        clone_default: f32[4] = aten.clone(seen)
        y: f32[4] = aten.mul.Tensor(x, clone_default)
        new: f32[4] = aten.add.Tensor(clone_default, 1)
        copied: f32[4] = aten.copy_(seen, new)
        return y, clone_default""",
    ),
    "a buffer that forward writes in place and assigns": (
        """
        seen: f32[4] = get_attr
        added: f32[4] = aten.add_.Tensor(seen, 1)
        new: f32[4] = aten.mul.Tensor(added, 2)
        copied: f32[4] = aten.copy_(seen, new)
        return""",
        """
        seen: f32[4] = get_attr
        added: f32[4] = aten.add_.Tensor(seen, 1)
        new: f32[4] = aten.mul.Tensor(added, 2)
        copied: f32[4] = aten.copy_(seen, new)
        return""",
    ),
    "a normalisation that nobody reads": (
        """
        x: f32[2, 4] = placeholder
        mean: f32[4] = get_attr
        train: f32[2, 4] = aten.batch_norm(x, None, None, mean, mean, True, 0.1, 1e-05, False)
        evaluated: f32[2, 4] = aten.batch_norm(x, None, None, mean, mean, False, 0.1, 1e-05, False)
        without: f32[2, 4] = aten.batch_norm(x, None, None, None, None, True, 0.1, 1e-05, False)
        return x""",
        """
        x: f32[2, 4] = placeholder
        mean: f32[4] = get_attr
        train: f32[2, 4] = aten.batch_norm(x, None, None, mean, mean, True, 0.1, 1e-05, False)
        return x""",
    ),
    "modes and inputs that nobody reads": (
        """
        unused: f32[4] = placeholder
        mode = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, True, None)
        noise: f32[4] = aten.rand([4])
        left = torch.amp.autocast_mode._exit_autocast(mode)
        return""",
        """
        unused: f32[4] = placeholder
        mode = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, True, None)
        left = torch.amp.autocast_mode._exit_autocast(mode)
        return""",
    ),
}


@pytest.mark.parametrize("name", BEFORE_AND_AFTER)
def test_clean(name: str) -> None:
    before, after = BEFORE_AND_AFTER[name]
    assert cleaned(before) == inspect.cleandoc(after)


def test_a_parameter_keeps_its_detach() -> None:
    """Without it, the parameter would get a gradient that the model does not give it."""
    text = inspect.cleandoc("""
        w: f32[4] = get_attr
        apart: f32[4] = aten.detach(w)
        return apart""")
    graph = parse(text)
    next(iter(graph.nodes)).meta["val"].requires_grad_()
    clean(graph)
    assert text_of(graph) == text


def test_writes_are_told_from_reads() -> None:
    graph = parse("""
        x: f32[4] = placeholder
        y = aten.relu(x)
        z = aten.relu_(y)
        out = aten.add.out(x, x, out=z)
        item = getitem(x, 0)
        return""")
    mutations = {node.name: is_mutation(node) for node in graph.nodes}
    assert [name for name, writes in mutations.items() if writes] == ["z", "out"]
