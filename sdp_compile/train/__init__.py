"""The main job: trains a small GPT with workers on this machine."""
