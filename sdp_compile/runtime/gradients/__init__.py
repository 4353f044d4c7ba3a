"""The gradient engine: averages gradients over their owners while backward runs."""
