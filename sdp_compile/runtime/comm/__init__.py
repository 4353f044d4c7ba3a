"""Process groups, and the collectives that everything else is made of."""
