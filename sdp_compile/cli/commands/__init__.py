"""The commands of ``sdp-compile``, one file each: options and help. What a command does lies outside of this folder."""
