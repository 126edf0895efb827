"""Tests building and loading native code: the cache, the lock, and every way in which there is no compiler."""

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from torch_utils import native
from torch_utils.native import BuildError, load_library

SOURCE = 'extern "C" int answer() { return ANSWER; }\n'
FLAGS = ("-O0", "-DANSWER=42")
PATIENCE = 900.0  # seconds for what takes a few; a hang is the alternative


def has_compiler():
    try:
        native.find_compiler()
    except BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Provides a trivial library's source and an empty cache."""
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLATGAN_NATIVE", raising=False)
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def built():
    return sorted(native.cache_dir().glob("*.so"))


def make_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_builds_once_and_rebuilds_for_other_sources_flags_and_processors(source, monkeypatch):
    assert load_library("answer", [source], FLAGS).answer() == 42
    first = built()
    stamp = first[0].stat().st_mtime_ns
    assert load_library("answer", [source], FLAGS).answer() == 42
    assert built() == first and first[0].stat().st_mtime_ns == stamp
    assert load_library("answer", [source], ("-O0", "-DANSWER=43")).answer() == 43
    assert len(built()) == 2
    monkeypatch.setattr(native, "cpu_features", lambda: "another processor")
    load_library("answer", [source], FLAGS)
    assert len(built()) == 3
    source.write_text(SOURCE.replace("ANSWER", "ANSWER + 1"))
    assert load_library("answer", [source], FLAGS).answer() == 43
    assert len(built()) == 4
    assert not [p for p in native.cache_dir().iterdir() if p.suffix != ".so"]  # no lock, no half-made file


@needs_compiler
@pytest.mark.parametrize("content", ["empty", "cut short", "of another system", "not a library"])
def test_builds_again_what_cannot_be_loaded(source, content, capfd):
    """In a process of its own, as a library that is loaded stays loaded under its name."""
    load_library("answer", [source], FLAGS)
    (path,) = built()
    good = path.read_bytes()
    bad = {
        "empty": b"",
        "cut short": good[: len(good) // 4],  # loading it would end the process with a bus error
        "of another system": good[:18] + (8).to_bytes(2, "little") + good[20:],  # MIPS, says the ELF header
        "not a library": b"not a library",
    }[content]
    path.unlink()  # not overwritten in place: this process has it mapped
    path.write_bytes(bad)
    if content == "not a library":  # but with the name that belongs to its content
        path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{native._digest(path)}.so"))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_load_in_child, args=(source, queue))
    child.start()
    assert queue.get(timeout=PATIENCE) == 42
    child.join(timeout=PATIENCE)
    assert len(built()) == 1 and len(built()[0].read_bytes()) == len(good)
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("building ") and ".so again: " in lines[0]


@needs_compiler
def test_headers_are_part_of_the_key_and_not_compiled(source, tmp_path):
    header = tmp_path / "value.h"
    source.write_text('#include "value.h"\nextern "C" int answer() { return VALUE; }\n')
    for value in (7, 8):
        header.write_text(f"#define VALUE {value}\n")
        assert load_library("answer", [source, header], FLAGS).answer() == value


def test_no_compiler_is_a_one_line_reason(source, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found") as caught:
        load_library("answer", [source], FLAGS)
    assert "\n" not in caught.value.reason
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(BuildError, match="CXX=no-such-compiler -x"):
        load_library("answer", [source], FLAGS)


def test_broken_compiler_is_named_and_its_output_kept(source, monkeypatch, tmp_path):
    compiler = make_compiler(tmp_path / "broken-c++", "echo 'first line'; echo 'cannot execute cc1plus' >&2; exit 3")
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildError, match="cannot execute cc1plus") as caught:
        load_library("answer", [source], FLAGS)
    assert caught.value.reason == f"the C++ compiler {compiler} failed with status 3"
    assert not list(native.cache_dir().iterdir())


def test_compiler_that_makes_rubbish_leaves_nothing_in_the_cache(source, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(make_compiler(tmp_path / "lying-c++", "exit 0")))
    with pytest.raises(BuildError, match="cannot build or load"):
        load_library("answer", [source], FLAGS)
    assert not list(native.cache_dir().iterdir())


def test_compiler_that_hangs_is_given_up(source, monkeypatch, tmp_path):
    script = 'case "$1" in --version) echo 1;; *) exec sleep 60;; esac'
    monkeypatch.setenv("CXX", str(make_compiler(tmp_path / "slow-c++", script)))
    monkeypatch.setattr(native, "BUILD_TIMEOUT", 0.3)
    monkeypatch.setattr(native, "HEARTBEAT", 0.1)
    with pytest.raises(BuildError, match="took over"):
        load_library("answer", [source], FLAGS)
    assert not list(native.cache_dir().iterdir())


def test_errors_in_the_source_are_shown(source):
    if not has_compiler():
        pytest.skip("no C++ compiler")
    source.write_text("int answer( {\n")
    with pytest.raises(BuildError, match=r"answer\.cpp:1"):
        load_library("answer", [source], FLAGS)


def test_missing_source_and_unwritable_cache_are_build_errors(source, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(make_compiler(tmp_path / "c++", "exit 0")))
    with pytest.raises(BuildError, match="cannot read the source"):
        load_library("answer", [tmp_path / "absent.cpp"], FLAGS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="cannot build or load"):
        load_library("answer", [source], FLAGS)


def test_can_be_switched_off(source, monkeypatch):
    monkeypatch.setenv("SPLATGAN_NATIVE", "0")
    with pytest.raises(BuildError, match="SPLATGAN_NATIVE=0"):
        load_library("answer", [source], FLAGS)


def lock_of(source):
    """Returns the path of the lock that a build of `source` takes."""
    key = native._content_key([source], native.find_compiler(), FLAGS)
    native.cache_dir().mkdir(parents=True)
    return native.cache_dir() / f"answer-{key}.lock"


def dead_pid():
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


@needs_compiler
def test_takes_over_the_lock_of_a_dead_process(source, capfd, monkeypatch):
    lock = lock_of(source)
    lock.write_text(f"{socket.gethostname()} {dead_pid()}")
    monkeypatch.setattr(native, "LOCK_SILENCE", 10 * PATIENCE)
    start = time.monotonic()
    assert load_library("answer", [source], FLAGS).answer() == 42
    assert time.monotonic() - start < PATIENCE and not lock.exists()
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "taking over the build lock" in lines[0] and "is gone" in lines[0]


@needs_compiler
def test_takes_over_a_silent_lock_of_another_machine(source, capfd, monkeypatch):
    monkeypatch.setattr(native, "LOCK_SILENCE", 0.3)
    lock_of(source).write_text(f"another-machine {os.getpid()}")
    assert load_library("answer", [source], FLAGS).answer() == 42
    assert "another-machine" in capfd.readouterr().err


@needs_compiler
def test_waits_for_a_builder_that_shows_life(source, monkeypatch, tmp_path, capfd):
    """One builder takes longer than LOCK_SILENCE; the other must neither give up nor take over."""
    monkeypatch.setattr(native, "LOCK_SILENCE", 1.5)
    monkeypatch.setattr(native, "HEARTBEAT", 0.1)
    real = " ".join(native.find_compiler())
    script = f'case "$1" in --version) ;; *) sleep 3;; esac\nexec {real} "$@"'
    monkeypatch.setenv("CXX", str(make_compiler(tmp_path / "slow-c++", script)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_load_in_child, args=(source, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=PATIENCE) for _ in children] == [42, 42]
    for child in children:
        child.join(timeout=PATIENCE)
    assert "taking over" not in capfd.readouterr().err


def _load_in_child(source, queue):
    queue.put(load_library("answer", [source], FLAGS).answer())


@needs_compiler
def test_several_processes_build_once(source, monkeypatch, tmp_path):
    real = " ".join(native.find_compiler())
    count = tmp_path / "count"
    script = f'case "$1" in --version) ;; *) echo x >> {count}; sleep 0.5;; esac\nexec {real} "$@"'
    monkeypatch.setenv("CXX", str(make_compiler(tmp_path / "counting-c++", script)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_load_in_child, args=(source, queue)) for _ in range(4)]
    for child in children:
        child.start()
    assert [queue.get(timeout=PATIENCE) for _ in children] == [42] * 4
    for child in children:
        child.join(timeout=PATIENCE)
    assert count.read_text().split() == ["x"]


def test_a_package_that_compiles_by_itself_is_built_by_one_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(native, "HEARTBEAT", 0.02)
    monkeypatch.setattr(native, "ANNOUNCE_AFTER", 0.05)
    monkeypatch.setattr(native, "POLL", 0.01)
    order = []

    def second():
        with native.exclusive_build("other", "never printed"):
            order.append("second")

    with native.exclusive_build("other", "compiling other"):
        waiting = threading.Thread(target=second)
        waiting.start()
        said, end = "", time.monotonic() + PATIENCE
        while not said and time.monotonic() < end:
            time.sleep(0.02)
            said += capsys.readouterr().err
        order.append("first")
    waiting.join(timeout=PATIENCE)
    assert order == ["first", "second"] and not list((tmp_path / "native").glob("*.lock"))
    assert said + capsys.readouterr().err == "compiling other\n"
