"""Mutation testing: breaks a random sample of lines, one at a time, and asks whether a test fails."""
