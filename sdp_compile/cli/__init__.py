"""The command line: train, check, inspect, report, doctor. Nothing here imports torch before it is needed."""
