"""What an environment lacks or says: no home directory, no account, threads, stop signals, numbers beyond reason."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import dnnlib
from dnnlib import ROOT, cache_dir, parse_ints, stoppable
from dnnlib.download import _default_cache
from torch_utils import distributed, native
from training.data.synthetic.portraits import Photographer, write_portraits
from training.data.synthetic.synthesize import synthesize_heads


def tool(*arguments) -> list[str]:
    return [sys.executable, str(ROOT / "dataset_tool.py"), *map(str, arguments)]


# ---- no home directory


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A user without HOME and without an account, as in a container that was started with --user."""
    monkeypatch.delenv("SPLATGAN_CACHE_DIR", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    _default_cache.cache_clear()
    yield tmp_path
    _default_cache.cache_clear()


def test_the_cache_of_a_user_without_a_home_is_a_temporary_folder(homeless, capsys):
    own = homeless / f"splatgan-cache-{os.getuid()}"
    assert cache_dir("a") == own / "a" and native.cache_dir() == own / "native"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "SPLATGAN_CACHE_DIR" in said and str(own) in said
    assert own.stat().st_mode & 0o077 == 0


def test_an_empty_home_is_none(homeless, monkeypatch):
    monkeypatch.setenv("HOME", "")
    assert str(cache_dir()).startswith(str(homeless))


def test_libraries_are_not_loaded_from_a_folder_of_somebody_else(homeless, monkeypatch):
    (homeless / f"splatgan-cache-{os.getuid()}").symlink_to(homeless)
    assert cache_dir().parent == homeless and cache_dir() != homeless / f"splatgan-cache-{os.getuid()}"


def test_the_named_folder_wins(homeless, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", "/somewhere")
    assert str(cache_dir("x")) == "/somewhere/x" and str(native.cache_dir()) == "/somewhere/native"


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root may become another user")
def test_a_tool_runs_for_a_user_without_home_and_account(tmp_path):
    """The case from the field; the other scripts share the cache's folder."""
    images = synthesize_heads(tmp_path / "heads", 3, 16, workers=1).images
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "SPLATGAN_CACHE_DIR")}
    as_nobody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    reads = f"import os; os.listdir({str(ROOT)!r}); os.listdir({str(images)!r})"
    if subprocess.run([*as_nobody, sys.executable, "-c", reads], env=environment, capture_output=True).returncode:
        pytest.skip("this interpreter or checkout is closed to other users")
    command = [*as_nobody, *tool("validate", images)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "no problems" in done.stdout, done.stderr


# ---- threads


@pytest.mark.parametrize(
    ("environment", "cores", "found", "where"),
    [
        ({}, 8, 8, "cores"),
        ({"OMP_NUM_THREADS": "3"}, 8, 3, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "3,2"}, 8, 3, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "12"}, 8, 12, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "many"}, 8, 8, "cores"),
        ({"OMP_NUM_THREADS": "0"}, 8, 8, "cores"),
        ({"OMP_NUM_THREADS": "9" * 5000}, 8, 8, "cores"),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, 8, 4, "equal share of 8 cores"),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1"}, 8, 8, "torchrun"),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "SPLATGAN_LAUNCH_DIR": "/x"},
         8, 1, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "6", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "SPLATGAN_LAUNCH_DIR": "/x"},
         8, 4, "equal share of 8 cores"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "16", "SPLATGAN_LAUNCH_DIR": "/x"}, 8, 1, "equal share"),
    ],
)  # fmt: skip
def test_threads(monkeypatch, environment, cores, found, where):
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "SPLATGAN_LAUNCH_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "usable_cores", lambda: cores)
    assert distributed._threads(int(environment.get("LOCAL_WORLD_SIZE", "1")))[0] == found
    assert where in distributed.threads_from()


def test_the_number_of_the_environment_holds(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        distributed.initialise("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# ---- stop signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_runs_what_cleans_up(number, capsys):
    cleaned, before = [], signal.signal(number, signal.SIG_DFL)  # nohup, for one, ignores SIGHUP
    try:
        with pytest.raises(SystemExit) as left, stoppable():
            try:
                os.kill(os.getpid(), number)
                time.sleep(900)
            finally:
                cleaned.append(True)
        assert cleaned and left.value.code == 128 + number and signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == f"Stopped by {number.name}: what was half written is removed\n"


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


PATIENCE = 900.0  # seconds for what takes a few; a hang is the alternative


def wait_for(process, condition):
    """Waits until a condition is true, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["convert", "synthesize"])
def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path, how):
    """The half-written set lies beside its place until it is whole."""
    place = tmp_path / "place"
    if how == "convert":
        images = synthesize_heads(tmp_path / "heads", 40, 32, workers=1).images
        command = tool("convert", images, f"--dest={place}/set", "--resolution=1024")
    else:
        command = tool("synthesize", f"--dest={place}/set", "--num=100000", "--resolution=64", "--workers=2")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(process, lambda: any(place.glob("*.partial-*/*/*")))
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM and "Stopped by SIGTERM" in said and "Traceback" not in said
    assert list(place.iterdir()) == []


def test_an_import_that_is_stopped_stops_the_program_that_makes_its_masks(tmp_path):
    """And leaves neither a set nor its scratch folder."""
    write_portraits(tmp_path / "in", 1, 0, Photographer(width=100, height=120))
    (tmp_path / "scratch").mkdir()
    script = tmp_path / "slow.py"
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(1800)\n"
    )
    command = tool("import", tmp_path / "in", "--from=photos", f"--dest={tmp_path}/set", "--resolution=32")
    command.append(f"--mask-command={sys.executable} {script} {{in}} {{out}}")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "SPLATGAN_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(process, lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM and "Stopped by SIGTERM" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert list((tmp_path / "scratch").iterdir()) == [] and not (tmp_path / "set").exists()


# ---- numbers beyond reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-99999999", "makes more than 100,000 numbers"),
        ("0-99999,200000", "makes more than 100,000 numbers"),
        ("4294967296", "too large; numbers up to 4294967295"),
        ("9" * 5000, "too large"),
        ("0-" + "9" * 5000, "too large"),
        ("x" * 5000, "is not a list"),
        ("\u0663", "is not a list"),
    ],
)
def test_lists_of_numbers_have_an_end(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        dnnlib.parse_flag("--seeds", text, parse_ints)
    assert len(str(refused.value)) < 300


def test_lists_of_numbers_within_reason():
    assert parse_ints("0-99999")[-1] == 99999 and parse_ints("007,4294967295") == [7, 4294967295]
