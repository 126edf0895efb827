"""The version of SplatGAN: pyproject.toml, checkpoints and --version take it from here."""

__version__ = "0.2.0.dev0"
