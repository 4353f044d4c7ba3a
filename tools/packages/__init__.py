"""Checks models of packages that others wrote: timm, transformers, vit-pytorch, x-transformers and smp.

``of_PACKAGE`` lists the models of a package and builds them small, ``trial`` checks one, ``process`` does so with a
time limit, and ``results`` keeps the outcomes. ``python -m tools.packages --help`` runs it.
"""
