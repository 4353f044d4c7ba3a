"""What the fork server of ``tests.distributed`` imports once for all workers."""

# ruff: noqa: F401
import torch._dynamo
import torch.distributed
import torch.export

import sdp_compile.compiler
import tests.distributed
