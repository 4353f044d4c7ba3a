"""The main job: a small GPT trained by workers on this machine."""
