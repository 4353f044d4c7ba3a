"""How gradients lie in flat buffers."""
