"""The compiled module of one worker."""
