"""For how long saving a checkpoint stalls training, at once and in the background: ``python -m tools.save_stall``."""
