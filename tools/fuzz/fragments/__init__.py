"""What random modules are made of; each function writes a few lines of one. Importing this registers them all."""

from tools.fuzz.draft import FRAGMENTS
from tools.fuzz.fragments import (
    arguments,
    blocks,
    hooks,
    layers,
    objects,
    python_state,
    sizes,
    tensor_state,
    writes,
)
