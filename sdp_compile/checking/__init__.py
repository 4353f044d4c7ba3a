"""Checking: a model captured, partitioned and held against the original, on one machine.

``check`` is the whole; ``oracle`` runs the original model, ``compare`` and ``verification`` hold a worker against it,
``facts`` sums up a plan, ``result`` is plain data. ``vision``, ``language`` and ``zoo`` build the models of known
libraries, ``sweep`` checks many of them in a process of their own.
"""
