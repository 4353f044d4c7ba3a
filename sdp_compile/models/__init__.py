"""Models by name: torchvision, timm, transformers, a factory or a file."""
