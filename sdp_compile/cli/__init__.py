"""The command line: ``sdp-compile train`` and ``check``. Nothing here imports torch before it is needed."""
