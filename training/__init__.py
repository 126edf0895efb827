"""Holds the science: networks, losses, the training loop, data sets, presets and checkpoints."""
