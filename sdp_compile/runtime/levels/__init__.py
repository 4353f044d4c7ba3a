"""Sends gradients and values along the levels of a plan."""
