"""In-place operators, views that are written to, and writes to parameters, buffers and inputs."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment


@fragment(weight=1.5)
def in_place(d: Draft) -> None:
    layer = d.set("fresh", d.dense(d.width))
    ways = (
        "y.relu_()",
        "y += h",
        "y.mul_(0.5).add_(h)",
        "y[:, 0] = 0",
        f"y.narrow({d.features}, 0, 4).mul_(2)",
        "y[y < 0] = 0",
        "y.masked_fill_(y > 1, 0.5)",
        "y.clamp_(-1, 1)",
        f"y.select({d.features}, 1).add_(1)",
        f"view = y.transpose(0, {d.features})\nview += 1",
        "y.view(-1)[: y.shape[0]] = 1.0",
        f"first = y.narrow({d.features}, 0, 4)\nfirst.copy_(first.detach() * 2)",
        f"y.index_add_({d.features % 2 if d.layout == 'rows' else d.features}, torch.tensor([0, 2]), "
        f"h.narrow({d.features}, 0, 2))",
        "y -= y.mean()",
        "torch.sigmoid(y, out=None)",
        "y.zero_().add_(h)",
        "y.unsqueeze_(0).squeeze_(0)",
        "y.swapaxes_(0, 1).swapaxes_(0, 1)",
    )
    d.add(f"y = {layer}(h)\n{d.chance.choice(ways)}\nh = h + y")


@fragment(weight=1.5)
def without_gradients(d: Draft) -> None:
    """What an operator returns as it is, or writes to, keeps its gradient; what is new has none."""
    layer = d.set("fresh", d.dense(d.width))
    ways = (
        "scale = y.float().square().mean()\ny = y * scale",
        "same = y.to(y.dtype)\ny = same + y",
        "y.mul_(0.5).add_(1)",
        "y[:, 0] = 0",
        "same = y.clamp_(-1, 1)\ny = same * 2",
        f"part = y.narrow({d.features}, 0, 4)\npart.zero_()\ntotal = part.sum()\ny = y + total",
        "y.copy_(y.tanh())",
        "same = torch.nn.functional.dropout(y.contiguous(), 0.5, False).type_as(y)\ny = y * same",
        f"chosen = y.float().topk(2, {d.features}).indices\n"
        f"y = y.gather({d.features}, chosen).sum({d.features}, keepdim=True)",
        "new = (y * 2).float()\ny = y * new",
        "view = y.view(-1)\ny = y + view.mean()",
    )
    inside, _, outside = d.chance.choice(ways).rpartition("\ny = ")
    if not inside:
        inside, outside = outside, "y"
    inside = inside.replace("\n", "\n    ")
    d.add(f"y = {layer}(h)\nwith torch.no_grad():\n    {inside}\ny = {outside}\nh = h + y")


@fragment()
def on_a_copy(d: Draft) -> None:
    ways = (
        "y = h.clone()\ny[:, 1:3] *= 2\nh = y",
        "y = torch.zeros_like(h)\ny.copy_(h)\nh = y * 2",
        "y = torch.empty_like(h)\ny[:] = h\nh = h + y",
        f"y = h.new_zeros(h.shape)\nfor i in range(3):\n    y.select({d.features}, i).add_(i)\nh = h + y",
        "y = h * 1\nz = y\nz += 1\nh = h + y",
        f"out = torch.cat([h, h], {d.features})\nout.narrow({d.features}, 0, {d.width}).tanh_()\n"
        f"h = out.narrow({d.features}, 0, {d.width}) + h",
    )
    d.add_one(ways)


@fragment("rows", "image", weight=0.7, only_in_root=True)
def input_written(d: Draft) -> None:
    ways = ("x.mul_(0.5)", "x[:, 0] = 0", "x += 1", "x.data.add_(1)", "x.detach().clamp_(min=0)")
    inner = d.chance.choice(ways)
    late = "x" if d.layout == "image" else "x[..., :1]"
    use = (
        "h = h + x.double().mean().to(h.dtype)" if d.chance.random() < 0.5 or d.layout == "image" else f"h = h + {late}"
    )
    d.add(f"with torch.no_grad():\n    {inner}\n{use}" if "data" not in inner else f"{inner}\n{use}")


@fragment(weight=1.5)
def buffer_average(d: Draft) -> None:
    dims = {"rows": "0", "sequence": "(0, 1)", "image": "(0, 2, 3)"}[d.layout]
    buffer = d.buffer("average", f"torch.zeros({d.width})")
    new = f"h.detach().mean({dims})"
    ways = (
        f"{buffer}.mul_(0.9).add_({new}, alpha=0.1)",
        f"{buffer} = 0.9 * {buffer} + 0.1 * {new}",
        f"{buffer}.copy_({new})",
        f"with torch.no_grad():\n    {buffer}.lerp_(h.mean({dims}), 0.1)",
        f"{buffer}.data = {new}",
        f"{buffer}[:] = {new}",
        f"{buffer}.data.mul_(0.5).add_({new})",
        f"if self.training:\n    {buffer} += {new}",
        f"{buffer} += {new}",
    )
    use, update = f"h = h - {d.per_feature(buffer)}", d.chance.choice(ways)
    d.add(f"{use}\n{update}" if d.chance.random() < 0.5 else f"{update}\n{use}")


@fragment()
def buffer_counter(d: Draft) -> None:
    count = d.buffer("count", d.chance.choice(("torch.tensor(0)", "torch.zeros(1)", "torch.tensor(0.0)")))
    ways = (
        f"{count} += 1\nh = h / {count}",
        f"{count}.add_(1)\nh = h * torch.clamp({count} * 0.3, max=1.0)",
        f"{count} = {count} + 1\nh = torch.where({count} > 2, torch.tanh(h), h)",
        f"if self.training:\n    {count}.add_(1)\nh = h / (1 + {count})",
        f"{count} += 1\nh = h * int({count})",
        f"for _ in range(int({count})):\n    h = torch.tanh(h)\n{count}.add_(1)",
        f"if {count}.item() > 1:\n    h = torch.tanh(h)\n{count} = {count} + 1",
    )
    d.add_one(ways)


@fragment(weight=0.7)
def ring_buffer(d: Draft) -> None:
    queue = d.buffer("queue", f"torch.zeros(4, {d.width})")
    row = {"rows": "h.detach()[0]", "sequence": "h.detach()[0, 0]", "image": "h.detach()[0, :, 0, 0]"}[d.layout]
    at = d.buffer("at", "torch.zeros(1, dtype=torch.long)")
    ways = (
        f"{queue} = torch.cat([{queue}[1:], {row}[None]])",
        f"{queue} = torch.roll({queue}, 1, 0)\n{queue}[0] = {row}",
        f"{queue}.index_copy_(0, {at}, {row}[None])\n{at}.add_(1).remainder_(4)",
        f"{queue}[int({at})] = {row}\n{at}[0] = ({at}[0] + 1) % 4",
        f"{queue} = torch.cat([{queue}, {row}[None]])",
    )
    d.add(f"{d.chance.choice(ways)}\nh = h + {d.per_feature(f'{queue}.mean(0)')}")


@fragment(weight=0.5)
def buffer_made_in_forward(d: Draft) -> None:
    name = d.name("made")
    d.add(f"""
        if not hasattr(self, "{name}"):
            self.register_buffer("{name}", torch.linspace(0, 1, {d.width}))
        h = h + {d.per_feature(f"self.{name}")}
    """)


@fragment(weight=1.5)
def parameter_written(d: Draft) -> None:
    layer = d.set("held", d.dense(d.width))
    weight = f"{layer}.weight"
    ways = (
        f"{weight}.data.clamp_(-0.1, 0.1)",
        f"{weight}.data.mul_(0.9)",
        f"{weight}.data.add_(0.01)",
        f"{weight}.data.div_({weight}.data.norm())",
        f"{weight}.data = {weight}.data * 0.5",
        f"with torch.no_grad():\n    {weight}.mul_(0.9)",
        f"with torch.no_grad():\n    {weight}.clamp_(min=0.01)",
        f"with torch.no_grad():\n    {weight}.copy_({weight} / {weight}.norm())",
        f"{weight}.detach().mul_(0.5)",
        f"{weight}.detach()[0] = 0",
        f"for parameter in {layer}.parameters():\n    parameter.data.clamp_(-0.2, 0.2)",
        f"if self.training:\n    {weight}.data.sub_({weight}.data.mean())",
        f"{layer}.bias.data.zero_()",
        f"{layer}.bias.data.fill_(0.1)",
    )
    late = d.chance.random() < 0.3
    if late:  # in-place after use: autograd reads the version of what it saved
        d.add(f"h = h + torch.tanh({layer}(h.detach()).detach())\n{d.chance.choice(ways)}\nh = h + {layer}(h)")
    else:
        d.add(f"{d.chance.choice(ways)}\nh = h + {layer}(h)")


@fragment(weight=0.7)
def averaged_copy(d: Draft) -> None:
    layer = d.set("online", d.dense(d.width))
    target = d.set("target", d.dense(d.width))
    d.init.append(f"{target}.requires_grad_(False)")
    d.add(f"""
        with torch.no_grad():
            for slow, fast in zip({target}.parameters(), {layer}.parameters()):
                slow.mul_(0.9).add_(fast, alpha=0.1)
            goal = {target}(h)
        h = h + {layer}(h) - 0.1 * goal
    """)


@fragment(weight=0.7, only_in_root=True)
def buffer_returned(d: Draft) -> None:
    buffer = d.buffer("kept", f"torch.zeros({d.width})")
    dims = {"rows": "0", "sequence": "(0, 1)", "image": "(0, 2, 3)"}[d.layout]
    d.add(f"{buffer}.add_(h.detach().mean({dims}))")
    d.shared.outputs.append(buffer)
