"""Several layers together: residual blocks, mixtures, adapters, children that are called twice."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment


@fragment(weight=3)
def residual(d: Draft) -> None:
    inner = d.hidden() * 2
    up, down = d.set("up", d.dense(inner)), d.set("down", d.dense(d.width, of=inner))
    branch = f"{down}({d.activation()}({up}(h)))"
    sums = (
        "h = h + {0}",
        "h = torch.add(h, {0}, alpha=0.5)",
        "h = torch.lerp(h, {0}.to(h.dtype), 0.3)",
        "h = torch.stack([h, {0}]).sum(0)",
        "h = sum([h, {0}])",
        "h = h + {0} * 0.5",
        "h = h + torch.where(h > 0, {0}, torch.zeros_like(h))",
        "h = h + (h - {0})",
    )
    d.add(d.chance.choice(sums).format(branch))


@fragment(weight=2)
def residual_list(d: Draft) -> None:
    inner = d.hidden()
    one = f"nn.Sequential({d.dense(inner)}, nn.GELU(), {d.dense(d.width, of=inner)})"
    blocks = d.set("blocks", f"nn.ModuleList({one} for _ in range({d.chance.choice((2, 3))}))")
    loops = (
        f"for block in {blocks}:\n    h = h + block(h)",
        f"for number, block in enumerate({blocks}):\n    h = h + block(h) / (number + 1)",
        f"for block in {blocks}[1:]:\n    h = h + block(h)\nh = h + {blocks}[0](h)",
        f"skips = []\nfor block in {blocks}:\n    skips.append(block(h))\n    h = h + skips[-1]\nh = h + sum(skips)",
    )
    d.add_one(loops)


@fragment(weight=1.5)
def low_rank(d: Draft) -> None:
    width = d.hidden()
    base = d.set("base", d.dense(width))
    d.init.append(f"{base}.requires_grad_(False)")
    down, up = d.set("a", d.dense(4, bias=False)), d.set("b", d.dense(width, of=4, bias=False))
    d.add(f"h = {d.activation()}({base}(h) + 2.0 * {up}({down}(h)))")
    d.width = width


@fragment()
def gated(d: Draft) -> None:
    inner = d.hidden() * 2
    up, down = d.set("gate", d.dense(2 * inner)), d.set("down", d.dense(d.width, of=inner))
    d.add(f"""
        gate, value = {up}(h).chunk(2, {d.features})
        h = h + {down}(F.silu(gate) * value)
    """)


@fragment()
def concatenated(d: Draft) -> None:
    width = d.hidden()
    side, mix = d.set("side", d.dense(width)), d.set("mix", d.dense(width, of=d.width + width))
    d.add(f"h = {mix}(torch.cat([h, F.relu({side}(h))], {d.features}))")
    d.width = width


@fragment()
def mixture(d: Draft) -> None:
    width = d.hidden()
    gate = d.set("gate", d.dense(3))
    experts = d.set("experts", f"nn.ModuleList({d.dense(width)} for _ in range(3))")
    d.add(f"""
        weights = {gate}(h).softmax({d.features})
        h = sum(weights.select({d.features}, i).unsqueeze({d.features}) * one(h) for i, one in enumerate({experts}))
    """)
    d.width = width


@fragment("image")
def squeeze_and_excite(d: Draft) -> None:
    down, up = d.set("squeeze", d.dense(4)), d.set("excite", d.dense(d.width, of=4))
    d.add(f"h = h * {up}(F.relu({down}(h.mean((2, 3), keepdim=True)))).sigmoid()")


@fragment("rows", "sequence")
def tied(d: Draft) -> None:
    layer = d.set("tied", f"nn.Linear({d.width}, {d.hidden()}, bias=False)")
    d.add(f"h = h + F.linear(F.relu({layer}(h)), {layer}.weight.t())")


@fragment("rows", "sequence")
def heads(d: Draft) -> None:
    count = d.chance.choice((2, 4))
    layer = d.set("heads", f"nn.Linear({d.width}, {d.width})")
    d.add(f"""
        parts = {layer}(h).unflatten(-1, ({count}, {d.width // count}))
        h = h + (parts * parts.mean(-2, keepdim=True).softmax(-1)).flatten(-2)
    """)


@fragment(weight=0.7)
def checkpointed(d: Draft) -> None:
    d.top("from torch.utils.checkpoint import checkpoint")
    layer = d.set("kept", f"nn.Sequential({d.dense(16)}, nn.Tanh(), {d.dense(d.width, of=16)})")
    d.add(f"h = h + checkpoint({layer}, h, use_reentrant=False)")


@fragment("rows", "sequence", weight=0.7)
def ensemble(d: Draft) -> None:
    weight = d.set("members", f"nn.Parameter(torch.randn(3, {d.width}, {d.width}) / {d.width})")
    d.add(f"h = h + torch.func.vmap(lambda one: torch.tanh(F.linear(h, one)))({weight}).mean(0)")


@fragment(weight=0.7)
def dictionary_of_layers(d: Draft) -> None:
    first, second = d.dense(d.width), d.dense(d.width, bias=False)
    layers = d.set("by_name", f"nn.ModuleDict({{'left': {first}, 'right': {second}}})")
    d.add(f"""
        for key, layer in {layers}.items():
            h = h + layer(h) if key == "left" else h - torch.tanh(layer(h))
    """)


@fragment(weight=0.7)
def parameter_list(d: Draft) -> None:
    scales = d.set("scales", f"nn.ParameterList(nn.Parameter(torch.randn({d.width})) for _ in range(2))")
    d.add(f"""
        for scale in {scales}:
            h = torch.tanh(h * {d.per_feature("scale")}) + h
    """)


@fragment(weight=1.5)
def called_twice(d: Draft) -> None:
    layer = d.set("shared", d.dense(d.width))
    ways = (
        f"h = {d.activation()}({layer}({d.activation()}({layer}(h))))",
        f"h = h + {layer}({layer}(h).tanh())",
        f"for _ in range(3):\n    h = h + F.relu({layer}(h)) * 0.3",
        f"h = h + torch.tanh({layer}(h)) * torch.sigmoid({layer}(h.flip(0)))",
    )
    d.add_one(ways)


@fragment(weight=0.7)
def custom_function(d: Draft) -> None:
    bodies = {
        "Reverse": ("return x.view_as(x)", "return -2 * grad"),
        "Through": ("return x.round()", "return grad"),
        "Square": (
            "ctx.save_for_backward(x)\n        return x * x",
            "x, = ctx.saved_tensors\n        return 3 * x * grad",
        ),
    }
    name = d.chance.choice(list(bodies))
    forward, backward = bodies[name]
    d.top(f"""
class {name}(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        {forward}

    @staticmethod
    def backward(ctx, grad):
        {backward}
""")
    layer = d.set("custom", d.dense(d.width))
    d.add(f"h = h + {name}.apply({layer}(h))")
