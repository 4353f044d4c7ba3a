"""Measuring SDP against its peers, in one interleaved run on this machine's workers."""
