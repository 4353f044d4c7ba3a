"""Tensors that a module keeps between calls without registering them, or leaves for the training loop to read."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment


@fragment(weight=1.5)
def auxiliary_loss(d: Draft) -> None:
    loss = d.set("aux_loss", "None")
    ways = (
        f"{loss} = h.pow(2).mean()",
        f"{loss} = (h.mean(0) ** 2).sum() * 0.1",
        f"{loss} = {{'l2': h.pow(2).mean(), 'size': h.shape[0]}}",
        f"{loss} = h",
        f"{loss} = h.detach()",
        f"if self.training:\n    {loss} = h.abs().mean()",
    )
    d.add_one(ways)
    d.read("aux_loss")


@fragment()
def collected(d: Draft) -> None:
    kept = d.set("seen", "[]")
    ways = (
        f"{kept}.append(h.detach().mean())",
        f"{kept}.append(h.mean())",
        f"{kept} = [h.mean(), h.amax()]",
        f"{kept}.append(h.shape[0])",
        f"{kept}.clear()\n{kept}.append(h)",
        f"{kept} += [h.detach()[:1]]\nh = h + {kept}[0].mean()",
        f"{kept}.append(h.detach().mean())\nh = h - sum({kept}) / len({kept})",
    )
    d.add_one(ways)
    d.read("seen")


@fragment()
def plain_constant(d: Draft) -> None:
    scale = d.set("ramp", f"torch.linspace(0.5, 1.5, {d.width})")
    d.add(f"h = h * {d.per_feature(scale)}")
    if d.chance.random() < 0.4:
        d.shared.changes.append(("scale_tensor", d.path + d.name("ramp"), 2.0))


@fragment()
def plain_average(d: Draft) -> None:
    mean = d.set("average", "torch.zeros(())" if d.chance.random() < 0.5 else f"torch.zeros({d.width})")
    over = "h.detach().mean()"
    if d.init[-1].endswith(f"({d.width})"):
        dims = {"rows": "0", "sequence": "(0, 1)", "image": "(0, 2, 3)"}[d.layout]
        over = f"h.detach().mean({dims})"
    ways = (
        f"{mean} = 0.9 * {mean} + 0.1 * {over}",
        f"{mean}.mul_(0.9).add_({over}, alpha=0.1)",
        f"{mean}.copy_({over})",
        f"with torch.no_grad():\n    {mean} += {over}",
    )
    use = f"h = h - {d.per_feature(mean) if 'mean(' in over and over != 'h.detach().mean()' else mean}"
    update = d.chance.choice(ways)
    d.add(f"{use}\n{update}" if d.chance.random() < 0.5 else f"{update}\n{use}")
    d.read("average")


@fragment()
def carried(d: Draft) -> None:
    kept = d.set("memory", "None")
    ways = (
        f"if {kept} is not None and {kept}.shape == h.shape:\n    h = h + 0.5 * {kept}\n{kept} = h.detach()",
        f"if {kept} is None:\n    {kept} = torch.zeros_like(h[:1])\nh = h + {kept}\n{kept} = h[:1].detach() * 0.5",
        f"previous, {kept} = {kept}, h.detach().mean()\nh = h if previous is None else h + previous",
    )
    d.add_one(ways)
    d.read("memory")


@fragment(weight=0.7)
def made_once(d: Draft) -> None:
    name = d.name("basis")
    ways = (
        f"torch.linspace(0, 1, {d.width})",
        f"h.detach().mean().expand({d.width}).clone()",
        f"torch.eye({d.width})[0] + 1",
    )
    d.add(f"""
        if not hasattr(self, "{name}"):
            self.{name} = {d.chance.choice(ways)}
        h = h * {d.per_feature(f"self.{name}")}
    """)


@fragment(weight=0.7)
def cached_weight(d: Draft) -> None:
    layer, kept = d.set("source", d.dense(d.width)), d.set("norm_of_weight", "None")
    d.add(f"""
        if self.training or {kept} is None:
            {kept} = {layer}.weight.detach().norm()
        h = h + {layer}(h) / {kept}
    """)


@fragment(weight=0.7)
def detached_alias(d: Draft) -> None:
    layer = d.set("source", d.dense(d.width))
    alias = d.set("alias", f"{layer}.weight.detach()")
    call = f"F.conv2d(h, {alias})" if d.layout == "image" else f"F.linear(h, {alias})"
    d.add(f"h = {layer}(h) * torch.sigmoid({call})")


@fragment("rows", "sequence", weight=0.7)
def unregistered_weight(d: Draft) -> None:
    weights = d.set("weights", f"[torch.randn({d.width}, {d.width}, requires_grad=True)]")
    d.add(f"h = h + F.linear(h, {weights}[0]) * 0.1")
    d.shared.unregistered.append(f"{d.path}{d.name('weights')}.0")


@fragment("image", "sequence", weight=0.7)
def cache_of_features(d: Draft) -> None:
    kept = d.set("features", "{}")
    d.add(f"""
        {kept}["last"] = h
        {kept}["count"] = {kept}.get("count", 0) + 1
        h = h + {kept}["last"].mean() * {kept}["count"]
    """)
    d.read("features")
