"""Sharded checkpoints of the full model, which any number of workers and plain PyTorch can read."""
