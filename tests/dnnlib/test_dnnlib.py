"""Tests formatting, list options, the download cache and the console log."""

import hashlib
import http.server
import sys
import threading

import pytest

from dnnlib import (
    Logger,
    cache_dir,
    download,
    format_bytes,
    format_error,
    format_time,
    make_folder,
    parse_color,
    parse_flag,
    parse_grid,
    parse_ints,
    require_place,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (8.4, "8s"),
        (59.6, "1m 00s"),
        (308, "5m 08s"),
        (3723, "1h 02m 03s"),
        (183840, "2d 03h 04m"),
        (-5, "-5s"),
    ],
)
def test_format_time(seconds, text):
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.50 KiB"),
        (2**31, "2.00 GiB"),
        (2**20 - 1, "1.00 MiB"),
        (5 * 2**50, "5120.00 TiB"),
    ],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def test_format_error_leaves_out_what_only_the_system_knows(tmp_path):
    with pytest.raises(OSError) as caught:
        open(tmp_path / "none").close()
    assert format_error(caught.value) == f"{tmp_path}/none: No such file or directory"
    assert format_error(OSError("full")) == "full" and format_error(ValueError("wrong")) == "wrong"


def test_parse_flag_names_the_option():
    assert parse_flag("--seeds", "0-2", parse_ints) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^--seeds=x: 'x' is not a list"):
        parse_flag("--seeds", "x", parse_ints)


def test_make_folder_says_what_is_in_its_way(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir() and make_folder(tmp_path / "a").is_dir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "file/deep/er", "loop"):
        there = tmp_path / name.split("/")[0]
        with pytest.raises(ValueError, match=f"^--dest={tmp_path}/{name}: no folder can be made there: {there} is no"):
            make_folder(tmp_path / name, "--dest")
    require_place(tmp_path / "new" / "er", "--dest")
    assert not (tmp_path / "new").exists()


def test_parse_ints_takes_lists_and_ranges():
    assert parse_ints("0-3,7, 5") == [0, 1, 2, 3, 7, 5]


@pytest.mark.parametrize("text", ["", "a", "1,", "3-1", "-1", "1.5", "0--2"])
def test_parse_ints_names_what_it_got(text):
    with pytest.raises(ValueError, match=r"whole numbers|backwards"):
        parse_ints(text)


def test_parse_color():
    assert parse_color("white") == (1, 1, 1) and parse_color("black") == (0, 0, 0)
    assert parse_color("0.25, 0,1") == (0.25, 0, 1)
    for text in ("255,0,0", "-0.1,0,0", "nan,0,0", "0.5", "0,0,0,0", "red", "", "random"):
        with pytest.raises(ValueError, match="R,G,B with numbers from 0 to 1"):
            parse_color(text)


def test_parse_grid():
    assert parse_grid("3x2") == (3, 2)
    for text in ("3", "0x2", "2x", "axb"):
        with pytest.raises(ValueError, match="columns x rows"):
            parse_grid(text)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `payload`, after `failures` answers that break off half-way."""

    payload, failures, requests = b"x" * 100_000, 0, 0

    def do_GET(self):
        cls = type(self)
        cls.requests += 1
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.payload)))
        self.end_headers()
        whole = cls.requests > cls.failures
        self.wfile.write(self.payload if whole else self.payload[: len(self.payload) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("FreshHandler", (Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", handler
        httpd.shutdown()
        thread.join()


def test_download_retries_and_caches(server, tmp_path):
    url, handler = server
    handler.failures = 1
    path = download(url + "/net.pt", tmp_path, sha256=hashlib.sha256(handler.payload).hexdigest())
    assert path.read_bytes() == handler.payload
    assert path.name.endswith("-net.pt")
    assert handler.requests == 2
    assert download(url + "/net.pt", tmp_path) == path
    assert handler.requests == 2
    assert list(tmp_path.iterdir()) == [path]


def test_download_leaves_nothing_half_done(server, tmp_path):
    url, handler = server
    handler.failures = 99
    with pytest.raises(OSError, match=r"net\.pt \(attempt 2 of 2\).*50000 of 100000"):
        download(url + "/net.pt", tmp_path, attempts=2)
    assert list(tmp_path.iterdir()) == []


def test_download_refuses_a_wrong_hash_and_a_missing_file(server, tmp_path):
    url, _ = server
    with pytest.raises(ValueError, match="SHA-256"):
        download(url + "/net.pt", tmp_path, sha256="0" * 64)
    with pytest.raises(OSError, match=r"attempt 1 of 3.*404"):
        download(url + "/missing", tmp_path)
    with pytest.raises(ValueError, match="https://"):
        download("net.pt", tmp_path)
    assert list(tmp_path.iterdir()) == []
    path = download(url + "/net.pt", tmp_path)
    with pytest.raises(ValueError, match="delete it"):
        download(url + "/net.pt", tmp_path, sha256="0" * 64)
    assert path.is_file()


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path))
    assert cache_dir("a", "b") == tmp_path / "a" / "b"
    monkeypatch.delenv("SPLATGAN_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "splatgan"


def test_logger_copies_whole_lines(tmp_path, capsys):
    path, before = tmp_path / "log.txt", (sys.stdout, sys.stderr)
    path.write_text("earlier\n")
    with Logger(path):
        print("one\n\ntwo")
        sys.stderr.write("\r10 %\r50 %")
        sys.stderr.write("\r100 %\n")
        sys.stderr.write("\rbar\r   \r")
        print("a warning", file=sys.stderr)
        sys.stdout.write("no end")
    assert (sys.stdout, sys.stderr) == before
    assert path.read_text() == "earlier\none\n\ntwo\n100 %\na warning\nno end\n"
    assert "10 %" in capsys.readouterr().err


def test_logger_survives_an_error_and_restores_the_streams(tmp_path):
    before = (sys.stdout, sys.stderr)
    with pytest.raises(RuntimeError), Logger(tmp_path / "log.txt", mode="w"):
        print("so far")
        raise RuntimeError
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "log.txt").read_text() == "so far\n"
    with pytest.raises(ValueError, match="mode"):
        Logger(tmp_path / "log.txt", mode="x")
