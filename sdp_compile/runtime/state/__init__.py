"""Full state from the workers' slices, and slices from full state."""
