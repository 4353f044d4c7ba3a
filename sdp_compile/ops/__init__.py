"""The functions that passes insert into graphs, besides ATen operators.

They are ordinary Python functions on tensors without state: readable in ``model.code`` and inlined by TorchDynamo.
"""

from sdp_compile.ops.marks import all_reduce_mean, complete_round
from sdp_compile.ops.masks import MASKS, mask_gradient, mask_parameter
from sdp_compile.ops.scaling import rescale

__all__ = ["MASKS", "all_reduce_mean", "complete_round", "mask_gradient", "mask_parameter", "rescale"]
