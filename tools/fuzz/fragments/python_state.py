"""Python state: numbers, flags, lists and dictionaries that forward reads or changes, clocks and random decisions."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment


@fragment(weight=1.5)
def counter(d: Draft) -> None:
    calls = d.set("calls", "0")
    ways = (
        f"{calls} += 1\nh = h * min(1.0, 0.25 * {calls})",
        f"{calls} += 1\nif {calls} % 2 == 0:\n    h = torch.tanh(h)",
        f"{calls} += 1\nif {calls} > 2:\n    h = h * 2",
        f"if self.training:\n    {calls} += 1\nh = h / (1 + {calls})",
        f"{calls} = {calls} + h.shape[0]\nh = h + 0.01 * {calls}",
        f"{calls} += 1",
        f"setattr(self, '{d.name('calls')}', {calls} + 1)\nh = h * (1 + {calls})",
        f"self.__dict__['{d.name('calls')}'] += 1\nh = h * (1 + {calls})",
    )
    d.add_one(ways)
    d.read("calls")
    if d.chance.random() < 0.3:
        d.change("calls", 0, 5)


@fragment()
def flag(d: Draft) -> None:
    flip = d.set("flip", d.chance.choice(("True", "False")))
    d.add(f"""
        if {flip}:
            h = torch.tanh(h)
        {flip} = not {flip}
    """)
    d.read("flip")


@fragment(weight=2)
def schedule(d: Draft) -> None:
    temperature = d.set("temperature", "1.0")
    ways = (
        f"h = h / {temperature}",
        f"h = torch.tanh(h) * {temperature} + h",
        f"if {temperature} < 0.5:\n    h = torch.tanh(h)",
        f"h = (h / {temperature}).softmax({d.features})",
        f"h = h * max({temperature}, 0.3)",
    )
    d.add_one(ways)
    d.change("temperature", 0.1, 2.0, 0.5)


@fragment(weight=1.5)
def switch(d: Draft) -> None:
    layer = d.set("optional", d.dense(d.width))
    kind = d.chance.randrange(4)
    if kind == 0:
        use = d.set("use_gate", "False")
        d.change("use_gate", True)
        d.add(f"if {use}:\n    h = h * torch.sigmoid({layer}(h))")
    elif kind == 1:
        mode = d.set("pooling", '"mean"')
        d.change("pooling", "max", "none")
        d.add(f'h = h + {layer}(h) if {mode} == "mean" else torch.tanh({layer}(h))')
    elif kind == 2:
        steps = d.set("depth", "1")
        d.change("depth", 2, 3)
        d.add(f"for _ in range({steps}):\n    h = h + torch.tanh({layer}(h))")
    else:
        kept = d.set("dropped", "None")
        d.change("dropped", 0.5)
        d.add(f"h = h + {layer}(h)\nif {kept} is not None:\n    h = h * {kept}")


@fragment()
def configuration(d: Draft) -> None:
    d.top("""
        @dataclasses.dataclass
        class Config:
            scale: float = 1.0
            deep: bool = False
    """)
    config = d.set("config", "Config()")
    layer = d.set("deeper", d.dense(d.width))
    d.add(f"""
        h = h * {config}.scale
        if {config}.deep:
            h = h + {layer}(h)
    """)
    name, value = d.chance.choice((("scale", 3.0), ("deep", True)))
    d.shared.changes.append(("set", f"{d.path}{d.name('config')}.{name}", value))


@fragment()
def list_as_schedule(d: Draft) -> None:
    scales, at = d.set("scales", "[1.0, 0.5, 2.0]"), d.set("at", "0")
    ways = (
        f"h = h * {scales}[{at} % 3]\n{at} += 1",
        f"h = h * {scales}[0]\n{scales}.append({scales}.pop(0))",
        f"h = h * sum({scales})\n{scales}.append(0.1 * {at})\n{at} += 1",
    )
    d.add_one(ways)
    d.read("scales")


@fragment(weight=0.7)
def iterator(d: Draft) -> None:
    d.init.append(f"self.{d.name('order')} = itertools.cycle((0.5, 1.0, 2.0))")
    d.add(f"h = h * next(self.{d.name('order')})")


@fragment(weight=0.7)
def class_attribute(d: Draft) -> None:
    d.top(f"""
        class {d.name("Counted")}(nn.Module):
            total = 0

            def forward(self, h):
                type(self).total += 1
                return h / type(self).total
    """)
    d.add(f"h = {d.set('counted', d.name('Counted') + '()')}(h)")


@fragment(weight=0.7)
def default_that_remembers(d: Draft) -> None:
    d.top(f"""
        def {d.name("remember")}(h, seen=[]):
            seen.append(h.shape[0])
            return h * len(seen)
    """)
    d.add(f"h = {d.name('remember')}(h)")


@fragment()
def python_random(d: Draft) -> None:
    layer = d.set("maybe", d.dense(d.width))
    draws = (
        "random.random() < 0.5",
        "np.random.rand() < 0.5",
        "random.choice((True, False))",
        "np.random.randint(2) == 0",
        "random.randint(0, 3) > 1",
    )
    d.add(f"""
        if {d.chance.choice(("not self.training or ", "self.training and ", ""))}{d.chance.choice(draws)}:
            h = h + {layer}(h)
    """)


@fragment(weight=0.7)
def random_number(d: Draft) -> None:
    ways = (
        "h = h * random.uniform(0.5, 1.5)",
        "h = h + float(np.random.randn()) * 0.1",
        "h = h + torch.as_tensor(np.random.randn(1), dtype=h.dtype)",
        "h = h * torch.rand((), dtype=h.dtype)",
        "h = h * torch.rand(1).item()",
        "h = h[torch.randperm(h.shape[0])]",
    )
    d.add_one(ways)


@fragment(weight=0.7)
def clock(d: Draft) -> None:
    d.set("started", "None")
    ways = (
        "h = h * (1 + time.time() % 100 / 100)",
        "if time.time() % 20 > 10:\n    h = torch.tanh(h)",
        f"if self.{d.name('started')} is None:\n    self.{d.name('started')} = time.time()\n"
        f"h = h * (1 + time.time() - self.{d.name('started')})",
    )
    d.add_one(ways)


@fragment(weight=0.7)
def environment(d: Draft) -> None:
    layer = d.set("extra", d.dense(d.width))
    d.add(f"""
        if os.environ.get("FUZZ_FLAG", "0") == "1":
            h = h + {layer}(h)
    """)
    d.shared.changes.append(("environment", "FUZZ_FLAG", "1"))


@fragment()
def global_variable(d: Draft) -> None:
    name = d.name("SCALE")
    d.top(f"{name} = 1.0")
    if d.chance.random() < 0.6:
        d.add(f"h = h * {name}")
        d.shared.changes.append(("global", name, d.chance.choice((0.5, 3.0))))
    else:
        d.forward.insert(0, f"global {name}")
        d.add(f"{name} += 0.5\nh = h * {name}")


@fragment(weight=0.7)
def frozen_from_outside(d: Draft) -> None:
    layer = d.set("base", d.dense(d.width))
    d.add(f"h = h + torch.tanh({layer}(h))")
    d.shared.changes.append(("freeze", f"{d.path}{d.name('base')}.weight", None))


@fragment(weight=0.5)
def made_in_forward(d: Draft) -> None:
    name = d.name("late")
    d.add(f"""
        if not hasattr(self, "{name}"):
            self.{name} = {d.dense(d.width)}
        h = h + self.{name}(h)
    """)
