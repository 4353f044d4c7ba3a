"""Capture: the user's model as one ATen graph per mode over one set of parameters and buffers.

``pipeline`` puts the steps together: ``inputs``, ``registered`` and ``clone`` prepare copies, ``export`` runs
torch.export, ``graph`` and ``guards`` turn its result into a `Program`, ``regions`` and ``clean`` simplify it.
``audit`` runs forward once before that and finds, with ``attributes`` and ``surroundings``, what Python in it a graph
would silently lose; ``observe``, ``assertions`` and ``refuse`` find gradients, assertions and modules. ``eager`` gives
questions about compilation the answer of eager execution, ``checkpoints`` marks what is recomputed, ``devices`` moves
graphs, ``methods`` prepares methods other than forward, and ``precision`` prepares another capture in other dtypes.
"""

from sdp_compile.capture.devices import retarget_devices
from sdp_compile.capture.methods import Methods
from sdp_compile.capture.pipeline import capture, recapture
from sdp_compile.capture.registered import plain_tensors

__all__ = ["Methods", "capture", "plain_tensors", "recapture", "retarget_devices"]
