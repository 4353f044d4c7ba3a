"""Tools for those who work on sdp-compile; not part of the package."""
