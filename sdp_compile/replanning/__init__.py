"""Gives a model another plan while it trains: values and optimizer states move to their new owners."""
