"""Models by name: torchvision, timm, transformers, a configuration file, or a factory of the user's own."""
