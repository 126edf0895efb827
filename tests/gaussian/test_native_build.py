"""Tests the kernel's build on a faulty machine: another back end renders, or it is built again; nothing hangs."""

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
import warnings

import pytest
import torch

from gaussian import backend_cpu, render, rendering, resolve_backend
from tests.gaussian.scenes import make_cameras, make_scene
from torch_utils import native


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Provides an empty cache, and a process that has not tried to load the kernel."""
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    backend_cpu._load.cache_clear()
    rendering._warn_once.cache_clear()
    yield tmp_path
    backend_cpu._load.cache_clear()
    rendering._warn_once.cache_clear()


def no_compiler(folder, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def broken_compiler(folder, monkeypatch):
    program = folder / "broken-c++"
    program.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo 1; else echo no cc1plus; exit 1; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))


def unwritable_cache(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(folder / "file"))


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        (no_compiler, "no C++ compiler found"),
        (broken_compiler, "failed with status 1"),
        (unwritable_cache, "cannot build or load the library 'splat'"),
    ],
)
def test_the_reference_takes_over_with_one_line(fresh, monkeypatch, defect, reason):
    scene, cameras = make_scene(1, 20), make_cameras(1, 1)
    expected = render(scene, cameras, 8, backend="torch").rgb
    defect(fresh, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = [render(scene, cameras, 8).rgb for _ in range(2)]
    assert all(torch.equal(image, expected) for image in images)
    (warning,) = caught
    assert reason in str(warning.message) and "'torch'" in str(warning.message)
    assert "\n" not in str(warning.message)
    with pytest.raises(ValueError, match="not available"):
        render(scene, cameras, 8, backend="cpu")


@pytest.mark.skipif(not backend_cpu.available(), reason="no native back end")
def test_is_built_in_time_in_spite_of_a_stale_lock_and_a_spoilt_library(fresh, capfd, monkeypatch):
    """Leaves the lock of a dead process and a truncated library in the cache, and expects one line for each."""
    sources = [backend_cpu.SOURCE_DIR / "splat.cpp", *sorted(backend_cpu.SOURCE_DIR.glob("*.h")), native.POOL]
    key = native._content_key(sources, native.find_compiler(), backend_cpu.FLAGS)
    native.cache_dir().mkdir(parents=True)
    (native.cache_dir() / f"splat-{key}-{20 * '0'}.so").write_bytes(b"\x7fELF")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (native.cache_dir() / f"splat-{key}.lock").write_text(f"{socket.gethostname()} {gone.stdout.strip()}")
    monkeypatch.setattr(native, "LOCK_SILENCE", 9000)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    assert resolve_backend("auto") == "cpu"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert time.monotonic() - start < 900
    assert after.ru_utime - before.ru_utime < 60  # seconds of the compiler; measured 3.4
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and ".so again: " in lines[0] and "taking over the build lock" in lines[1]
    assert [path.suffix for path in native.cache_dir().iterdir()] == [".so"]


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="instruction sets of x86-64")
def test_the_cache_of_another_processor_is_left_alone(fresh, monkeypatch):
    """One home directory for machines of two kinds: each finds its own library, and neither the other's."""
    monkeypatch.setattr(backend_cpu, "SOURCE_DIR", fresh)
    (fresh / "splat.cpp").write_text("int nothing;\n")
    for features in ("x86_64 avx512f", "x86_64 sse2", "x86_64 avx512f"):
        monkeypatch.setattr(native, "cpu_features", lambda features=features: features)
        native.load_library("splat", [fresh / "splat.cpp"], backend_cpu.FLAGS)
    assert len(os.listdir(native.cache_dir())) == 2
