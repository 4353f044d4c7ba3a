"""Shards: which elements each owner of a unit steps, and how owners exchange them."""
