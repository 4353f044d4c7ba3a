"""Copies between many parts of tensors and flat vectors, by few calls."""
