"""Shards: which elements each owner of a unit steps, and how shards travel."""
