"""Locates the code."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the folder of the packages and of the scripts
