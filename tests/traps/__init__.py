"""Habits of PyTorch users that would train something wrong: each works exactly, is refused, or is noticed."""
