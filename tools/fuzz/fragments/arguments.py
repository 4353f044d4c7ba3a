"""Further inputs, what a model asks of its inputs and of its surroundings, and what it returns."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment

SECOND = {
    "rows": "torch.randn(4, 5)",
    "sequence": "torch.randn(3, 4, 5)",
    "image": "torch.randn(2, 3, 6, 6)",
}
"""The second input ``w``, whose sizes differ from the first's where that is possible."""


def second(d: Draft) -> None:
    """Adds the second input ``w``."""
    d.shared.arguments["w"] = SECOND[d.layout]


@fragment(only_in_root=True)
def second_input(d: Draft) -> None:
    second(d)
    layer = d.set("second", d.dense(d.width, of=3 if d.layout == "image" else 5))
    reduce = {"rows": "", "sequence": ".mean(1, keepdim=True)", "image": ".mean((2, 3), keepdim=True)"}[d.layout]
    d.add(f"h = h + {layer}(w){reduce}")


@fragment("sequence", weight=1.5, only_in_root=True)
def sizes_of_two_inputs(d: Draft) -> None:
    second(d)
    layer = d.set("second", d.dense(d.width, of=5))
    ways = (
        f"h = h + ({layer}(w) if w.shape[1] == x.shape[1] else {layer}(w).mean(1, keepdim=True))",
        f"h = h + {layer}(w).mean(1, keepdim=True)\nif x.shape[1] > w.shape[1]:\n    h = h * 2",
        f"h = h + {layer}(w[:, : h.shape[1]]).sum(1, keepdim=True)",
        f"if w.shape[1] != h.shape[1]:\n    h = h - 1\nh = h + {layer}(w).amax(1, keepdim=True)",
    )
    d.add_one(ways)


@fragment(weight=0.7, only_in_root=True)
def optional_input(d: Draft) -> None:
    d.shared.arguments["bias=None"] = ""
    d.add("h = h if bias is None else h + bias")


@fragment(weight=0.7, only_in_root=True)
def number_argument(d: Draft) -> None:
    d.shared.arguments["alpha=0.5"] = ""
    d.add("h = h * (1 + alpha)")


@fragment(weight=0.7, only_in_root=True)
def kind_of_input(d: Draft) -> None:
    tests = (
        "x.dtype == torch.float32",
        "x.is_contiguous()",
        "x.requires_grad",
        "x.ndim == 3",
        "isinstance(x, torch.Tensor)",
        'x.device.type == "cpu"',
        "x.is_leaf",
        "x.stride()[0] > 20",
    )
    d.add(f"""
        if {d.chance.choice(tests)}:
            h = h * 2 - 1
    """)


@fragment(weight=1.5)
def surroundings(d: Draft) -> None:
    layer = d.set("probe", d.dense(d.width))
    tests = (
        "self.training",
        "torch.is_grad_enabled()",
        "torch.compiler.is_compiling()",
        "torch.jit.is_tracing()",
        "torch.jit.is_scripting()",
        f"{layer}.weight.requires_grad",
        "h.requires_grad",
        "torch.is_autocast_enabled('cpu')",
        "torch.is_inference_mode_enabled()",
        "h.dtype == torch.float64",
        "torch.get_default_dtype() == torch.float32",
        "next(self.parameters()).dtype == h.dtype",
        "h.grad_fn is not None",
    )
    d.add(f"""
        if {d.chance.choice(tests)}:
            h = torch.tanh({layer}(h)) + h
    """)


@fragment(weight=0.7)
def part_in_other_mode(d: Draft) -> None:
    layer = d.set("plain", d.dense(d.width))
    ways = (
        f"with torch.no_grad():\n    target = {layer}(h)\nh = h + torch.tanh(target)",
        f"with torch.autocast('cpu', enabled=False):\n    h = h + torch.tanh({layer}(h))",
        f"with torch.enable_grad():\n    h = h + {layer}(h)",
        f"with torch.set_grad_enabled(self.training):\n    h = h + {layer}(h)",
        f"h = h + {layer}(h.detach())",
        f"h = h + {layer}(h).detach()",
    )
    d.add_one(ways)


@fragment(weight=0.7)
def gradient_in_forward(d: Draft) -> None:
    layer = d.set("energy", d.dense(1))
    d.add(f"""
        if torch.is_grad_enabled() and h.requires_grad:
            slope, = torch.autograd.grad({layer}(h).sum(), h, create_graph=True)
            h = h + slope
    """)


@fragment(weight=0.7)
def value_condition(d: Draft) -> None:
    tests = ("h.sum() > 0", "h.mean().item() < 0.1", "bool((h > 0).any())", "torch.isfinite(h).all()")
    d.add(f"""
        if {d.chance.choice(tests)}:
            h = h * 2
    """)


@fragment(weight=1.2)
def value_asserted(d: Draft) -> None:
    tests = (
        "torch.isfinite(h).all()",
        "not torch.isnan(h).any()",
        "h.abs().max() < 1e9",
        "(h == h).all().item()",
        "h.abs().max().item() < 1e9",
    )
    d.add_assertion(tests, "value")


@fragment(weight=0.7)
def value_as_size(d: Draft) -> None:
    count = d.buffer("count", f"torch.tensor({d.chance.choice((2, 3))})")
    ways = (
        f"h = torch.cat([h[:, : int({count})] * 2, h[:, int({count}) :]], 1)",
        f"for _ in range(int({count})):\n    h = torch.tanh(h)",
        f"if {count} > 2:\n    h = h * 2",
        f"h = h / {count}.item()",
    )
    d.add_one(ways)


@fragment(only_in_root=True)
def further_output(d: Draft) -> None:
    d.add(f"{d.name('early')} = h")
    choices = (d.name("early"), f"{d.name('early')}.detach()", f"{d.name('early')}.mean()", f"h.shape[{d.free}]", "x")
    d.shared.outputs.append(d.chance.choice(choices))


@fragment(weight=0.5)
def tensor_hook(d: Draft) -> None:
    d.add("""
        if h.requires_grad:
            h.register_hook(lambda grad: grad * 2)
    """)
