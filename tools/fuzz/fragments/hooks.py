"""Hooks that change, count or collect, registered in the constructor, from outside or in forward."""

from __future__ import annotations

from tools.fuzz.draft import Draft, fragment


def _register(d: Draft, layer: str, call: str) -> None:
    """Registers a hook in the constructor, or from outside after it."""
    if d.chance.random() < 0.5 or not d.is_root:
        d.init.append(f"{layer}.{call}")
    else:
        d.shared.after.append(f"{layer.replace('self', 'model')}.{call.replace('self.', 'model.')}")


@fragment()
def changing_hook(d: Draft) -> None:
    layer = d.set("hooked", d.dense(d.width))
    hooks = (
        "register_forward_hook(lambda module, args, out: out * 2)",
        "register_forward_hook(lambda module, args, out: torch.tanh(out) + args[0])",
        "register_forward_pre_hook(lambda module, args: (args[0] + 1,))",
        "register_forward_pre_hook(lambda module, args: args[0] * 0.5)",
        "register_forward_hook(lambda module, args, out: out if module.training else -out)",
        "register_forward_hook(lambda module, args, kwargs, out: out + 1, with_kwargs=True)",
        "register_forward_hook(lambda module, args, out: None)",
    )
    _register(d, layer, d.chance.choice(hooks))
    d.add(f"h = h + {layer}(h)")


@fragment()
def collecting_hook(d: Draft) -> None:
    layer = d.set("hooked", d.dense(d.width))
    kept = d.set("caught", "[]")
    what = d.chance.choice(("out.detach().mean()", "out.mean()", "out.shape[0]", "out"))
    _register(d, layer, f"register_forward_hook(lambda module, args, out: {kept}.append({what}))")
    clear = d.chance.random() < 0.5
    d.add(f"{kept}.clear()\nh = h + {layer}(h)" if clear else f"h = h + {layer}(h)")
    d.read("caught")


@fragment(weight=0.7)
def counting_hook(d: Draft) -> None:
    layer = d.set("hooked", d.dense(d.width))
    name = d.name("hook_calls")
    d.init.append(f"{layer}.{name} = 0")
    d.top("""
        def count(name):
            def hook(module, args, out):
                setattr(module, name, getattr(module, name) + 1)
                return out * getattr(module, name)

            return hook
    """)
    _register(d, layer, f"register_forward_hook(count('{name}'))")
    d.add(f"h = h + {layer}(h)")
    d.shared.read.append(f"{d.path}{d.name('hooked')}.{name}")


@fragment(weight=0.7)
def short_lived_hook(d: Draft) -> None:
    layer = d.set("hooked", d.dense(d.width))
    d.add(f"""
        kept = []
        handle = {layer}.register_forward_hook(lambda module, args, out: kept.append(out))
        h = h + {layer}(h)
        handle.remove()
        h = h + torch.tanh(kept[0])
    """)


@fragment(weight=0.4)
def gradient_hook(d: Draft) -> None:
    layer = d.set("hooked", d.dense(d.width))
    hooks = (
        f"{layer}.register_full_backward_hook(lambda module, before, after: (before[0] * 2,))",
        f"{layer}.weight.register_hook(lambda grad: grad * 2)",
    )
    d.init.append(d.chance.choice(hooks))
    d.add(f"h = h + {layer}(h)")


@fragment(weight=0.7)
def hook_on_model(d: Draft) -> None:
    if d.is_root:
        hooks = (
            "register_forward_pre_hook(lambda module, args: (args[0] * 1, *args[1:]))",
            "register_forward_hook(lambda module, args, out: out)",
            "register_forward_hook(lambda module, args, out: setattr(module, 'last_type', type(out).__name__))",
        )
        d.shared.after.append(f"model.{d.chance.choice(hooks)}")
    else:
        d.init.append("self.register_forward_hook(lambda module, args, out: out * 1.5)")
