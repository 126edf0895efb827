"""Provides PyTorch utilities that know nothing of GANs."""
