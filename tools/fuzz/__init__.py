"""Random modules, compiled and compared with their eager originals over several calls.

``grammar`` writes a module's source from the ``fragments``, ``steps`` says what is done with it, ``instance`` makes it,
``comparison`` runs original and subnetwork side by side, ``shrinking`` looks for a smaller module that fails alike, and
``results`` keeps the outcomes. ``python -m tools.fuzz --help`` runs it.
"""
