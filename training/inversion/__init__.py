"""Finds the head of a generator behind pictures: camera, latent, tuned weights, splats. The logic of invert.py."""
