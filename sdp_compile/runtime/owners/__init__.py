"""Compares what the owners of an element hold, bit by bit."""
