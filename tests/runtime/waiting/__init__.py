"""Tests of what the workers know of each other while they wait."""
