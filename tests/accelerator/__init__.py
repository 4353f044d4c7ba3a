"""What holds on the CPU, on an accelerator. ``python -m tools.accelerator`` runs these tests and records them."""
