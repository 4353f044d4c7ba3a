"""Python code on sizes: conditions, arithmetic and loops that make a model compute differently at other sizes."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment

OTHER_SIZES = (1, 5, 7, 8)
"""Sizes of the free dimension that variants have."""


def _changed(d: Draft) -> str:
    """Returns an expression of ``h`` that differs from ``h``."""
    layer = d.set("other", d.dense(d.width))
    return d.chance.choice(("h * 2", "torch.tanh(h) - 1", f"h + torch.tanh({layer}(h))", f"F.relu({layer}(h))"))


@fragment(weight=2)
def size_is(d: Draft) -> None:
    size = d.chance.choice((*OTHER_SIZES, d.size))
    sign = d.chance.choice(("==", "!=", ">", "<", ">=", "<="))
    d.add(f"""
        if h.shape[{d.free}] {sign} {size}:
            h = {_changed(d)}
    """)


@fragment()
def size_is_odd(d: Draft) -> None:
    d.add(f"""
        if h.shape[{d.free}] % {d.chance.choice((2, 3, 4))} {d.chance.choice(("==", "!="))} 0:
            h = {_changed(d)}
    """)


@fragment()
def batch_is_one(d: Draft) -> None:
    d.add(f"""
        if h.shape[0] == 1:
            h = {_changed(d)}
        else:
            h = h - h.mean(0, keepdim=True)
    """)


@fragment("sequence", "image")
def two_sizes(d: Draft) -> None:
    other = 0 if d.layout == "sequence" else 3
    d.add(f"""
        if h.shape[{d.free}] {d.chance.choice(("==", "!=", ">", "<"))} h.shape[{other}]:
            h = {_changed(d)}
    """)


@fragment("sequence", "image")
def padded(d: Draft) -> None:
    dim, pad = (1, "(0, 0, 0, missing)") if d.layout == "sequence" else (2, "(0, 0, 0, missing)")
    d.add(f"""
        length = h.shape[{dim}]
        missing = -length % 4
        if missing:
            h = F.pad(h, {pad})
        h = h - h.mean({dim}, keepdim=True)
        h = h.narrow({dim}, 0, length)
    """)


@fragment()
def size_as_number(d: Draft) -> None:
    size = f"h.shape[{d.free}]"
    ways = (
        f"h = h / {size}",
        f"h = h * {size} ** -0.5",
        f"h = h / math.sqrt({size})",
        f"h = h * ({size} // 2)",
        f"h = h * min({size}, 6) / max({size}, 5)",
        f"h = h * float({size})",
        f"h = h * (1.0 if {size} in (5, 6) else 0.5)",
        f"h = h * {{7: 2.0, 8: 3.0}}.get({size}, 1.0)",
        f"h = h * len(range({size}))",
        f"h = h + torch.full((1,), {size} * 0.1, dtype=h.dtype)",
        f"h = h * int({size} ** 0.5)",
        f"h = h * (1 + ({size} > 6))",
        "h = h * h.numel() / h.shape[0]",
    )
    d.add_one(ways)


@fragment("sequence")
def loop_over_time(d: Draft) -> None:
    layer = d.set("step", f"nn.Linear({2 * d.width}, {d.width})")
    d.add(f"""
        state, states = torch.zeros_like(h[:, 0]), []
        for t in range(h.shape[1]):
            state = torch.tanh({layer}(torch.cat([h[:, t], state], -1)))
            states.append(state)
        h = h + torch.stack(states, 1)
    """)


@fragment("sequence")
def part_of_time(d: Draft) -> None:
    ways = (
        "h = torch.cat([h[:, : h.shape[1] // 2] * 2, h[:, h.shape[1] // 2 :]], 1)",
        "h = h[:, :4] if h.shape[1] > 4 else h",
        "h = h - h[:, -1:]",
        "h = torch.cat([part * (n + 1) for n, part in enumerate(h.split(3, 1))], 1)",
        "h = torch.stack([step * 2 for step in h.unbind(1)], 1)",
        "h = h.masked_fill(torch.ones(h.shape[1], h.shape[1]).tril().sum(0).view(-1, 1) < 2, 0.0)",
    )
    d.add_one(ways)


@fragment(weight=0.7)
def tried(d: Draft) -> None:
    d.add(f"""
        try:
            h = h + h.unflatten({d.free}, (-1, {d.chance.choice((2, 3))})).flatten({d.free}, {d.free + 1}) * 0.5
        except RuntimeError:
            h = {_changed(d)}
    """)


@fragment()
def size_asserted(d: Draft) -> None:
    tests = (f"h.shape[{d.free}] < 20", f"h.shape[{d.free}] >= 1", "h.dim() > 1", f"h.shape[{d.free}] != 13")
    d.add_assertion(tests, "size")


@fragment(weight=0.7)
def size_kept(d: Draft) -> None:
    d.set("last_size", "0")
    kept = d.chance.choice((f"h.shape[{d.free}]", f"(h.shape[{d.free}], self.training)"))
    d.add(f"self.{d.name('last_size')} = {kept}")
    d.read("last_size")


@fragment(weight=0.7)
def cached_by_size(d: Draft) -> None:
    table = d.set("cache", "{}")
    ramp = f"torch.linspace(0.5, 1.5, {d.width})"
    value = d.chance.choice(
        (f"{ramp} + size", f"{ramp}.to(h) * size", f"{ramp} + h.detach().mean()", f"h.new_ones({d.width})")
    )
    d.add(f"""
        size = h.shape[{d.free}]
        if size not in {table}:
            {table}[size] = {value}
        h = h * {d.per_feature(f"{table}[size]")}
    """)


@fragment(weight=0.7)
def memoised(d: Draft) -> None:
    d.top("""
        @functools.lru_cache(None)
        def ramp(size, width):
            return torch.linspace(0.5, 1.5, width) * size
    """)
    ramp = f"ramp(h.shape[{d.free}], {d.width})"
    d.add(f"h = h * {d.per_feature(ramp)}")
