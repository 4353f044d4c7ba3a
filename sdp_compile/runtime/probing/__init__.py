"""Whether an optimizer may step slices of parameters: known classes, and trials of those that are not."""
