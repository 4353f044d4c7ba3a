"""Checks on one machine that the workers of a plan compute what the original model computes.

``check`` runs all stages. ``oracle`` runs the original model, ``verification`` and ``compare`` compare a worker with it
in the ``precision`` of float64, ``facts`` sums up the plan, and ``verdict`` holds the result. ``sweep`` checks many
models in a separate process.
"""
