"""``torch.compile`` on a compiled module: one graph per mode, and the original's gradients."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.library_models import MODELS
from tests.oracle import randomise
from tests.runtime.module.small import Small, compiled


@pytest.mark.timeout(120)
def test_compiles_once_per_mode() -> None:
    model, _, kwargs = MODELS["gpt2"]()
    module, other = (compiled(model, kwargs) for _ in range(2))
    expected = model(**kwargs)
    torch._dynamo.reset()
    counter = CompileCounter()
    wrapped = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for _ in range(6):
        wrapped.train()
        output = wrapped(**kwargs)
        wrapped.eval()
        assert not module.training
        wrapped(**kwargs)
    assert counter.frame_count == 2
    tokens = kwargs["input_ids"][:, :9].repeat(2, 1)
    wrapped(input_ids=tokens, labels=tokens)
    assert counter.frame_count == 2, "another batch size and length"
    assert type(output) is type(expected)
    torch.testing.assert_close(output.loss, expected.loss)
    assert type(module).forward.__code__ != type(other).forward.__code__


@pytest.mark.timeout(120)
def test_compiled_training_equals_eager() -> None:
    model = randomise(Small())
    model.first[2].p = 0.0
    module, x = compiled(model, {"x": torch.randn(4, 6)}), torch.randn(4, 6)
    torch._dynamo.reset()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x=x)["y"].square().sum().backward()
    model(x)["y"].square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(model.named_parameters())[name].grad)
    torch.testing.assert_close(dict(module.named_buffers())["first.1.running_mean"], model.first[1].running_mean)
