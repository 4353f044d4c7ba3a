"""What happens between backward and the next forward: clipping, scaling, steps, and the optimizer's state."""
