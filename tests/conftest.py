"""Settings for this process and all that tests start; set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many tests run several processes at once
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are built from configurations, never downloaded
