"""Which workers own which units, and what follows for the elements of each tensor."""
