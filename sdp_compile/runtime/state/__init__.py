"""Converts between the workers' slices and full state."""
