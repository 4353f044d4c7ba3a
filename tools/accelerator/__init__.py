"""Runs the tests of ``tests/accelerator`` on this machine's accelerator and records what they find."""
