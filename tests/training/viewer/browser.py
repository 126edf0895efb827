"""Marks tests that need a browser."""

import pytest

from benchmarks.browser import PROGRAM

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")
