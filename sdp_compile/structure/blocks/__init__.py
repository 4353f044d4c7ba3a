"""Blocks: residual branches that can be dropped whole."""
