"""Torch mechanism with no GAN in it."""
