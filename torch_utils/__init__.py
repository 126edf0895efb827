"""Provides PyTorch utilities that know nothing of GANs.

Importing it asks Intel's Math Kernel Library, whose products PyTorch takes on most CPUs, for results that do not depend
on where operands lie in memory. On AMD's processors they do otherwise: a part of a tensor had another product than its
copy, and two ranks took other steps than one process (torch 2.13, an EPYC). The library reads the request at its first
product, and a value that is set already stays. On Intel's own processors nothing is asked, as nothing differs.
"""

import os

from torch_utils.processor import is_intel

if not is_intel():
    os.environ.setdefault("MKL_CBWR", "AUTO")
