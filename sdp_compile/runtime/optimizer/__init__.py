"""Clipping, loss scaling, optimizer steps and optimizer state."""
