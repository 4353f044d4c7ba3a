"""Emulation: N workers in one process, on one device, with one copy of the full model."""
