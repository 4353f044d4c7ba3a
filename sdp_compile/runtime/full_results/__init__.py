"""Torch's own functions of gradients, with the full model's results: total norms, and the check for overflow."""
