"""What torch finds on this machine, as JSON on standard output.

``sdp-compile doctor`` runs this in a process of its own, because a broken installation can crash or hang the Python
that imports it.
"""

from __future__ import annotations

import json
from typing import Any


def probe() -> dict[str, Any]:
    """Returns torch's version, devices and process group backends, and why a Gloo group cannot be made, if so."""
    import torch
    import torch.distributed as dist

    backends: dict[str, bool] = {}
    gloo_error = "this torch is built without torch.distributed"
    if dist.is_available():
        backends = {name: getattr(dist, f"is_{name}_available")() for name in ("gloo", "nccl", "xccl", "mpi")}
        gloo_error = _try_gloo() if backends["gloo"] else "this torch is built without Gloo"
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "backends": backends,
        "gloo_error": gloo_error,
    }


def _devices() -> list[dict[str, Any]]:
    """Returns the accelerators that torch can use, each with its collective backend."""
    import torch
    import torch.distributed as dist

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return []
    module = torch.get_device_module(accelerator)
    backend = dist.get_default_backend_for_device(accelerator) if dist.is_available() else None
    devices = []
    for index in range(torch.accelerator.device_count()):
        device: dict[str, Any] = {"type": accelerator.type, "index": index, "backend": backend}
        if hasattr(module, "get_device_properties"):
            properties = module.get_device_properties(index)
            device |= {"name": properties.name, "memory_bytes": properties.total_memory}
        devices.append(device)
    return devices


def _try_gloo() -> str:
    """Returns why a process group of one worker cannot be made and used; empty where it can."""
    import torch
    import torch.distributed as dist

    store = dist.HashStore()  # type: ignore[attr-defined]
    try:
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        dist.all_reduce(torch.ones(1))
        dist.destroy_process_group()
    except RuntimeError as error:  # such as a host name that does not resolve
        return str(error).partition("\n")[0]
    return ""


if __name__ == "__main__":
    print(json.dumps(probe()))
