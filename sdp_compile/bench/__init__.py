"""Measures SDP against DDP and FSDP2 in one interleaved run on this machine."""
