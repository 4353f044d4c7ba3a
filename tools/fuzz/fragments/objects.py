"""Choices between layers, and state in objects of other kinds than numbers and tensors."""

from __future__ import annotations

import textwrap

from tools.fuzz.draft import Draft, fragment


def _method(d: Draft, text: str) -> None:
    d.methods.append(textwrap.dedent(text).strip("\n"))


@fragment()
def alternating_layers(d: Draft) -> None:
    layers, calls = d.set("choices", f"nn.ModuleList({d.dense(d.width)} for _ in range(2))"), d.set("calls", "0")
    d.add(f"""
        h = h + torch.tanh({layers}[{calls} % 2](h))
        {calls} += 1
    """)
    d.read("calls")


@fragment()
def layer_by_size(d: Draft) -> None:
    small, large = d.set("small", d.dense(d.width)), d.set("large", d.dense(d.width))
    d.add(f"""
        layer = {small} if h.shape[{d.free}] < 7 else {large}
        h = h + torch.tanh(layer(h))
    """)


@fragment("rows", "sequence", weight=0.7, only_in_root=True)
def early_return(d: Draft) -> None:
    test = d.chance.choice((f"h.shape[{d.free}] > 7", "h.shape[0] == 1", "not self.training"))
    d.add(f"""
        if {test}:
            return self.head(h[..., :1].expand(*h.shape[:-1], self.head.in_features))
    """)


@fragment(weight=0.7)
def plain_object(d: Draft) -> None:
    d.top("""
        class Meter:
            def __init__(self):
                self.total, self.count = 0.0, 0

            def update(self, value):
                self.total, self.count = self.total + value, self.count + 1
                return self.total / self.count
    """)
    meter = d.set("meter", "Meter()")
    ways = (f"{meter}.update(h.detach().mean())", f"{meter}.update(h.shape[0])", f"{meter}.update(1.0) * {meter}.count")
    d.add(f"h = h - 0.1 * {d.chance.choice(ways)}")
    d.shared.read.append(f"{d.path}{d.name('meter')}.count")


@fragment(weight=0.7)
def queue(d: Draft) -> None:
    d.top("import collections")
    kept = d.set("recent", "collections.deque(maxlen=2)")
    d.add(f"""
        {kept}.append({d.chance.choice(("h.detach().mean()", "h.shape[0]", "1.0"))})
        h = h * (1 + sum({kept}) / len({kept}))
    """)


@fragment(weight=0.7)
def sizes_seen(d: Draft) -> None:
    d.top("import collections")
    seen = d.set("sizes", "collections.Counter()")
    d.add(f"""
        {seen}[h.shape[{d.free}]] += 1
        h = h / {seen}[h.shape[{d.free}]]
    """)


@fragment(weight=0.7)
def computed_attribute(d: Draft) -> None:
    name, step = d.name("rate"), d.set("rate_step", "0")
    _method(
        d,
        f"""
        @property
        def {name}(self):
            return 1.0 / (1 + {step})
        """,
    )
    grows = d.chance.random() < 0.5
    d.add(f"h = h * self.{name}\n{step} += 1" if grows else f"h = h * self.{name}")
    if not grows:
        d.change("rate_step", 1, 3)


@fragment(weight=0.7)
def kept_property(d: Draft) -> None:
    name = d.name("basis")
    layer = d.set("source", d.dense(d.width))
    value = d.chance.choice((f"torch.linspace(0, 1, {d.width})", f"{layer}.bias.detach() * 1"))
    _method(
        d,
        f"""
        @functools.cached_property
        def {name}(self):
            return {value}
        """,
    )
    d.add(f"h = {layer}(h) + {d.per_feature(f'self.{name}')}")


@fragment(weight=0.5)
def own_generator(d: Draft) -> None:
    generator = d.set("generator", "torch.Generator().manual_seed(0)")
    d.add(f"h = h * torch.rand((), generator={generator}, dtype=h.dtype)")


@fragment(weight=0.5)
def without_gradient(d: Draft) -> None:
    name, layer = d.name("target"), d.set("teacher", d.dense(d.width))
    _method(
        d,
        f"""
        @torch.no_grad()
        def {name}(self, h):
            return torch.tanh({layer}(h))
        """,
    )
    d.add(f"h = h + self.{name}(h)")


@fragment(weight=0.5)
def frozen_in_forward(d: Draft) -> None:
    layer = d.set("sometimes", d.dense(d.width))
    d.add(f"{layer}.requires_grad_({d.chance.choice(('not self.training', 'False', 'self.training'))})")
    d.add(f"h = h + {layer}(h)")


@fragment(weight=0.5)
def values_chosen(d: Draft) -> None:
    ways = (
        "h = h + h[h > 0].mean()",
        "h = h + h.detach().numpy().mean()",
        "h = h * len(h.tolist())",
        "h = h + torch.nonzero(h > 0).shape[0] / 10",
        "h = h + h.flatten().unique().sum() / 10",
        "h = h + torch.from_numpy(np.ones(1)).to(h.dtype)",
        "h = h + h.new_tensor([1.0])",
        "h = h + torch.tensor([1, 2, 3]).sum()",
    )
    d.add_one(ways)
