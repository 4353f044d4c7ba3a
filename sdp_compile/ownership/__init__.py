"""Which workers own which units, and which own the elements of each tensor."""
