"""What the fork server of ``tests.distributed`` imports once for all workers."""

# ruff: noqa: F401
import torch._dynamo
import torch._inductor.codecache
import torch.distributed
import torch.export._trace

import sdp_compile.compiler
import tests.distributed
from tests import captures

captures.warm()
