"""What releases of torch differ in, for tests of what the older ones cannot do."""

from __future__ import annotations

import torch
from torch.torch_version import TorchVersion

BEFORE_2_12 = TorchVersion(torch.__version__) < "2.12"
