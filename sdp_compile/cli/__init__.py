"""The command line: ``sdp-compile train``. Nothing here imports torch before a worker needs it."""
