"""Functions that passes insert into graphs, besides ATen operators.

They are ordinary Python functions on tensors: readable in ``model.code``, inlined by TorchDynamo, without state.
"""

from sdp_compile.ops.marks import all_reduce_mean
from sdp_compile.ops.masks import MASKS, mask_gradient, mask_parameter
from sdp_compile.ops.scaling import rescale

__all__ = ["MASKS", "all_reduce_mean", "mask_gradient", "mask_parameter", "rescale"]
