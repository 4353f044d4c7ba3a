"""Capture: the user's model as one ATen graph per mode over one set of parameters and buffers.

``pipeline`` puts the steps together: ``inputs`` and ``clone`` prepare copies, ``export`` runs torch.export, ``graph``
turns its result into a `Program`, ``regions`` and ``clean`` simplify it, ``observe`` and ``refuse`` find what a graph
would silently lose, ``checkpoints`` marks what is recomputed, ``devices`` moves graphs, and ``precision`` prepares
another capture in other dtypes.
"""

from sdp_compile.capture.devices import retarget_devices
from sdp_compile.capture.pipeline import capture, recapture

__all__ = ["capture", "recapture", "retarget_devices"]
