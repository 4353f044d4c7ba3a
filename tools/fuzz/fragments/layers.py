"""Layers: what most lines of most models are."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment


@fragment(weight=4)
def dense(d: Draft) -> None:
    width = d.hidden()
    layer = d.set("dense", d.dense(width, bias=d.chance.random() < 0.7))
    d.add(f"h = {d.activation()}({layer}(h))")
    d.width = width


@fragment(weight=2)
def normalisation(d: Draft) -> None:
    kinds = {
        "rows": ("nn.LayerNorm({0})", "nn.RMSNorm({0})", "nn.BatchNorm1d({0})", "nn.GroupNorm(4, {0})"),
        "sequence": ("nn.LayerNorm({0})", "nn.RMSNorm({0})"),
        "image": ("nn.BatchNorm2d({0})", "nn.GroupNorm(4, {0})", "nn.InstanceNorm2d({0}, affine=True)"),
    }
    layer = d.set("norm", d.chance.choice(kinds[d.layout]).format(d.width))
    d.add(f"h = {layer}(h)")


@fragment("sequence")
def batch_norm_over_time(d: Draft) -> None:
    layer = d.set("norm", f"nn.BatchNorm1d({d.width}, momentum={d.chance.choice(('0.1', '0.5', 'None'))})")
    d.add(f"h = {layer}(h.transpose(1, 2)).transpose(1, 2)")


@fragment("image", weight=2)
def convolution(d: Draft) -> None:
    width = d.hidden()
    dilation = d.chance.choice((1, 1, 2))
    groups = d.chance.choice((1, 1, 4))
    layer = d.set("conv", f"nn.Conv2d({d.width}, {width}, 3, padding={dilation}, dilation={dilation}, groups={groups})")
    d.add(f"h = {d.activation()}({layer}(h))")
    d.width = width


@fragment("image")
def depthwise(d: Draft) -> None:
    deep = d.set("deep", f"nn.Conv2d({d.width}, {d.width}, 3, padding=1, groups={d.width})")
    point = d.set("point", f"nn.Conv2d({d.width}, {d.width}, 1)")
    d.add(f"h = h + {point}(F.relu6({deep}(h)))")


@fragment("sequence")
def causal_convolution(d: Draft) -> None:
    width = d.hidden()
    layer = d.set("conv", f"nn.Conv1d({d.width}, {width}, 3, padding=2)")
    d.add(f"h = F.relu({layer}(h.transpose(1, 2))[..., :-2]).transpose(1, 2)")
    d.width = width


@fragment("sequence", weight=2)
def attention(d: Draft) -> None:
    heads = d.chance.choice((2, 4))
    if d.chance.random() < 0.4:
        layer = d.set("attention", f"nn.MultiheadAttention({d.width}, {heads}, batch_first=True)")
        d.add(f"h = h + {layer}(h, h, h, need_weights=False)[0]")
        return
    qkv = d.set("qkv", f"nn.Linear({d.width}, {3 * d.width})")
    out = d.set("out", f"nn.Linear({d.width}, {d.width})")
    causal = d.chance.choice(("True", "False"))
    d.add(f"""
        b, t, _ = h.shape
        q, k, v = {qkv}(h).view(b, t, 3, {heads}, {d.width // heads}).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal={causal})
        h = h + {out}(mixed.transpose(1, 2).reshape(b, t, {d.width}))
    """)


@fragment("sequence")
def recurrent(d: Draft) -> None:
    kind = d.chance.choice(("GRU", "LSTM", "RNN"))
    both = d.chance.random() < 0.4
    width = 8
    layer = d.set("rnn", f"nn.{kind}({d.width}, {width}, batch_first=True, bidirectional={both})")
    d.add(f"h, _ = {layer}(h)")
    d.width = width * (2 if both else 1)


@fragment("rows")
def recurrent_cell(d: Draft) -> None:
    layer = d.set("cell", f"nn.GRUCell({d.width}, {d.width})")
    d.add(f"""
        state = torch.zeros_like(h)
        for _ in range(3):
            state = {layer}(h, state)
        h = h + state
    """)


@fragment("sequence")
def position_embedding(d: Draft) -> None:
    layer = d.set("positions", f"nn.Embedding(16, {d.width})")
    d.add(f"h = h + {layer}(torch.arange(h.shape[1], device=h.device))")


@fragment("rows", "sequence")
def looked_up(d: Draft) -> None:
    layer = d.set("table", f"nn.Embedding(2, {d.width})")
    d.add(f"h = h + {layer}((h[..., 0] > 0).long())")


@fragment(weight=0.7)
def dropout(d: Draft) -> None:
    layer = d.set("drop", f"nn.Dropout({d.chance.choice((0.0, 0.1, 0.5))})")
    d.add(f"h = {layer}(h)")
    d.shared.is_random = True


@fragment("rows", "sequence")
def weight_normed(d: Draft) -> None:
    d.top("from torch.nn.utils.parametrizations import weight_norm")
    layer = d.set("normed", f"weight_norm(nn.Linear({d.width}, {d.width}))")
    d.add(f"h = h + torch.tanh({layer}(h))")


@fragment("rows", "sequence")
def einsum_weight(d: Draft) -> None:
    width = d.hidden()
    weight = d.set("weight", f"nn.Parameter(torch.randn({d.width}, {width}) / {d.width})")
    spelled = ("torch.einsum('...i,io->...o', h, {0})", "h @ {0}", "torch.matmul(h, {0})", "F.linear(h, {0}.t())")
    d.add(f"h = {d.chance.choice(spelled).format(weight)}")
    d.width = width


@fragment()
def scaled(d: Draft) -> None:
    scale = d.set("scale", f"nn.Parameter(torch.ones({d.chance.choice((1, d.width))}))")
    d.add(f"h = h * {d.per_feature(scale)}")


@fragment("image", "sequence")
def pooled(d: Draft) -> None:
    if d.layout == "image":
        ways = (
            "h = h + F.adaptive_avg_pool2d(h, 1)",
            "h = h + F.interpolate(F.avg_pool2d(h, 2, ceil_mode=True), size=h.shape[-2:])",
            "h = F.max_pool2d(h, 3, stride=1, padding=1)",
        )
    else:
        ways = (
            "h = h + h.mean(1, keepdim=True)",
            "h = h + h.amax(1, keepdim=True)",
            "h = h.cumsum(1) / torch.arange(1, h.shape[1] + 1, dtype=h.dtype).view(-1, 1)",
            "h = h + h.roll(1, 1)",
            "h = h - h.logsumexp(1, keepdim=True)",
        )
    d.add_one(ways)


@fragment()
def over_features(d: Draft) -> None:
    dim = d.features
    ways = (
        f"h = F.normalize(h, dim={dim})",
        f"h = h.softmax({dim})",
        f"h = h - h.mean({dim}, keepdim=True)",
        f"h = h / (1 + h.norm(dim={dim}, keepdim=True))",
        f"h = h.flip({dim})",
        f"h = h * h.var({dim}, keepdim=True).add(1e-5).rsqrt()",
    )
    d.add_one(ways)
