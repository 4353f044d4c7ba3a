"""The gradient contract: how the gradients of a unit's owners make up the gradient of the unit."""
