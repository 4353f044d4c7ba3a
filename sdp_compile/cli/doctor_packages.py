"""The packages that ``sdp-compile doctor`` looks for."""

from __future__ import annotations

TORCH = (2, 11)
REQUIRED = ("jinja2", "networkx", "numpy", "pydantic", "rich", "safetensors", "scipy", "typer")
OPTIONAL = {
    "torchvision": "check torchvision:NAME",
    "timm": "check timm:NAME",
    "transformers": "check transformers:TYPE",
}
