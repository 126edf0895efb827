"""Compiles C++ into a shared library, once per kind of machine, and loads it with ctypes.

A library is built into a cache folder under a name that hashes its sources, the compiler (path and version), the flags
and the processor's feature set, so that one home directory serves machines of several kinds; the name's last part is
the hash of its content, so that a damaged file is noticed and built again. One process builds while others wait for its
lock file; a lock whose holder is gone or hangs is taken over. Both are reported in one line. Nothing here needs torch's
headers, and nothing is built before a library is asked for.

Environment: CXX (compiler), SPLATGAN_CACHE_DIR (default ~/.cache/splatgan), SPLATGAN_NATIVE=0 (build and load nothing).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import dnnlib

COMPILERS = ("c++", "g++", "clang++")  # tried in this order where CXX is not set
DEFAULT_FLAGS = ("-std=c++17", "-O3", "-march=native")
BUILD_TIMEOUT = 180.0  # seconds that a compiler may take
HEARTBEAT = 1.0  # seconds after which a builder touches its lock file again
LOCK_SILENCE = 20.0  # seconds without a heartbeat after which a lock's holder, on whatever machine, is taken to hang
ANNOUNCE_AFTER = 5.0  # seconds that another package's build takes before it is announced
POLL = 0.1  # seconds between two looks at a lock
POOL = Path(__file__).parent / "csrc" / "pool.h"  # threads for loops, for libraries that include it
NUMBERS = POOL.with_name("numbers.h")  # float32 and bfloat16, for libraries that include it
HEADER_SUFFIXES = {".h", ".hpp", ".inc"}
MESSAGE_TAIL = 2000  # characters of compiler output kept


class BuildError(RuntimeError):
    """Reports that there is no library: `reason` is one line, `output` the end of what the compiler printed."""

    def __init__(self, reason: str, output: str = "") -> None:
        self.reason = reason
        self.output = output[-MESSAGE_TAIL:]
        super().__init__(f"{reason}\n{self.output}" if self.output else reason)


def load_library(name: str, sources: Sequence[str | Path], flags: Sequence[str] = DEFAULT_FLAGS) -> ctypes.CDLL:
    """Returns the shared library `name`, built from `sources` if the cache does not hold it.

    sources: .cpp files to compile and the headers that they include (hashed, not compiled), all C++.
    flags: given to the compiler beside those that make a shared library.
    Raises BuildError if native code is switched off, or no library can be built or loaded.
    """
    if os.environ.get("SPLATGAN_NATIVE", "1") == "0":
        raise BuildError("native code is switched off (SPLATGAN_NATIVE=0)")
    compiler = find_compiler()
    paths = [Path(s) for s in sources]
    key = _content_key(paths, compiler, flags)
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-{key}"
        library = _load_cached(folder, stem)
        if library is None:
            lock = folder / f"{stem}.lock"
            with _build_lock(lock):
                library = _load_cached(folder, stem)  # another process may have built it meanwhile
                if library is None:
                    target = _build(compiler, [p for p in paths if p.suffix not in HEADER_SUFFIXES], flags, lock)
                    library = ctypes.CDLL(str(target))
        return library
    except OSError as error:
        raise BuildError(f"cannot build or load the library {name!r}: {error}") from error


@contextlib.contextmanager
def exclusive_build(name: str, announcement: str) -> Iterator[None]:
    """Lets one process at a time run the block, in which another package compiles code.

    The others wait for the lock `name`, which is touched meanwhile. Prints the announcement if the block takes long.
    Raises OSError if the cache folder cannot be written.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{name}.lock"
    done = threading.Event()

    def show_life() -> None:
        start, announced = time.monotonic(), False
        while not done.wait(HEARTBEAT):
            with contextlib.suppress(FileNotFoundError):  # another process may have taken the lock over
                os.utime(lock)
            if not announced and time.monotonic() - start > ANNOUNCE_AFTER:
                announced = True
                print(announcement, file=sys.stderr, flush=True)

    with _build_lock(lock):
        thread = threading.Thread(target=show_life, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def is_locked(name: str) -> bool:
    """Tells whether some process holds the lock `name` of `exclusive_build`, or has left it behind."""
    return (cache_dir() / f"{name}.lock").exists()


def torch_openmp() -> ctypes.c_void_p | None:
    """Returns the entry point of the GNU OpenMP runtime if torch has loaded that one, else None: threads for POOL."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError):
        return None


def _load_cached(folder: Path, stem: str) -> ctypes.CDLL | None:
    """Loads the library that the cache holds, `stem`-<hash of its content>.so; returns None if there is none.

    A file whose content does not have that hash (loading a truncated one kills the process) or that cannot be loaded is
    removed, with one line that says so, to be built again.
    """
    for path in sorted(folder.glob(f"{stem}-*.so")):
        try:
            if _digest(path) != path.stem.rpartition("-")[2]:
                raise OSError("its content is not what was built")
            return ctypes.CDLL(str(path))
        except OSError as error:
            print(f"building {path} again: {error}", file=sys.stderr, flush=True)
            path.unlink(missing_ok=True)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def cache_dir() -> Path:
    """Returns the folder of built libraries."""
    return dnnlib.cache_dir("native")


def find_compiler() -> list[str]:
    """Returns the command that compiles C++, its program as an absolute path. Raises BuildError if there is none."""
    chosen = os.environ.get("CXX")
    candidates = [shlex.split(chosen)] if chosen else [[c] for c in COMPILERS]
    for command in candidates:
        program = shutil.which(command[0])
        if program:
            return [program, *command[1:]]
    looked_for = f"CXX={chosen}" if chosen else ", ".join(COMPILERS)
    raise BuildError(f"no C++ compiler found (looked for {looked_for})")


def _content_key(sources: Sequence[Path], compiler: Sequence[str], flags: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in (*compiler, _version(tuple(compiler)), *flags, cpu_features()):
        digest.update(part.encode() + b"\0")
    for path in sources:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BuildError(f"cannot read the source {path}: {error}") from error
        digest.update(path.name.encode() + b"\0" + len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:20]


@functools.cache
def cpu_features() -> str:
    """Returns the processor's instruction sets as the system reports them; -march=native code runs where they agree."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    found = {line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))}
    return f"{platform.machine()} {' | '.join(sorted(found))}"


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        ran = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C++ compiler {compiler[0]} does not run: {error}") from error
    return ran.stdout


def _build(compiler: Sequence[str], sources: Sequence[Path], flags: Sequence[str], lock: Path) -> Path:
    """Compiles next to the lock file and renames, so that the library is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=lock.parent, prefix=lock.stem, suffix=".tmp")
    os.close(handle)
    command = [*compiler, *flags, "-fPIC", "-shared", "-pthread", *map(str, sources), "-o", temporary]
    try:
        status, output = _run_with_heartbeat(command, lock)
        if status != 0:
            raise BuildError(f"the C++ compiler {compiler[0]} failed with status {status}", output)
        ctypes.CDLL(temporary)  # a library that does not load must not enter the cache
        target = lock.with_name(f"{lock.stem}-{_digest(Path(temporary))}.so")
        os.replace(temporary, target)
        return target
    finally:
        Path(temporary).unlink(missing_ok=True)


def _run_with_heartbeat(command: Sequence[str], lock: Path) -> tuple[int, str]:
    """Runs `command`, touching the lock file meanwhile, and returns its exit status and output."""
    start = time.monotonic()
    with subprocess.Popen(
        command, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=HEARTBEAT)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                if time.monotonic() - start > BUILD_TIMEOUT:
                    process.kill()
                    raise BuildError(f"the C++ compiler {command[0]} took over {BUILD_TIMEOUT:.0f} s") from None
                with contextlib.suppress(FileNotFoundError):  # another process may have taken the lock over
                    os.utime(lock)


@contextlib.contextmanager
def _build_lock(path: Path) -> Iterator[None]:
    """Holds the lock file, which names its holder as `host pid`; waits while another holder's heartbeat goes on."""
    seen, since = None, time.monotonic()
    while not _try_create(path):
        try:
            state, holder = path.stat().st_mtime_ns, path.read_text()
        except FileNotFoundError:
            continue  # released just now
        if state != seen:  # no comparison with this machine's clock: the holder's may differ
            seen, since = state, time.monotonic()
        silence = time.monotonic() - since
        host, _, pid = holder.partition(" ")
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            _take_away(path, f"its holder, process {pid}, is gone")
        elif silence > LOCK_SILENCE:
            _take_away(path, f"its holder, {holder or 'unnamed'}, has shown no life for {silence:.0f} s")
        else:
            time.sleep(POLL)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _try_create(path: Path) -> bool:
    """Creates the lock with its content in one step: a link to a complete file either succeeds or finds a lock."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".holder")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}")
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def _take_away(path: Path, reason: str) -> None:
    """Removes a stale lock. The rename lets one of several waiting processes win; the others find it gone."""
    print(f"taking over the build lock {path}: {reason}", file=sys.stderr, flush=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    aside.unlink(missing_ok=True)
