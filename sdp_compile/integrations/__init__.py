"""Trains compiled models with other libraries' loops, each on the library's own extension points."""
