"""Provides small helpers without torch: formatting, list options, the download cache, the console log."""

from dnnlib.console import Logger
from dnnlib.download import cache_dir, download, file_sha256
from dnnlib.formatting import format_bytes, format_error, format_time
from dnnlib.options import parse_color, parse_flag, parse_grid, parse_ints
from dnnlib.paths import ROOT, make_folder, require_place
from dnnlib.stopping import stoppable
from dnnlib.version import __version__
from dnnlib.waiting import wait_briefly

__all__ = [
    "ROOT",
    "Logger",
    "__version__",
    "cache_dir",
    "download",
    "file_sha256",
    "format_bytes",
    "format_error",
    "format_time",
    "make_folder",
    "parse_color",
    "parse_flag",
    "parse_grid",
    "parse_ints",
    "require_place",
    "stoppable",
    "wait_briefly",
]

wait_briefly()  # here, since every script imports this package before torch
