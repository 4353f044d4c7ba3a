"""``sdp-compile bench --one-of N``: one worker of N on the device at hand, its peers' traffic left out."""
