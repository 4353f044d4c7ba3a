"""What is known about operators: a table with one entry for each, see `sdp_compile.structure.operators.table`.

Each file declares the operators of one kind. A user adds a rule for an operator of their own with `rule`.
"""

from sdp_compile.structure.operators import (
    along,
    contraction,
    convolution,
    elementwise,
    factory,
    indexing,
    joining,
    matrix,
    normalisation,
    pooling,
    recurrent,
    reduction,
    scattering,
    shape,
    spectral,
    splitting,
)
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.context import Context as RuleContext
from sdp_compile.structure.operators.table import Operator, declare, lookup, rule

__all__ = ["Context", "Operator", "RuleContext", "Value", "declare", "lookup", "rule"]
