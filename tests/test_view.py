"""Tests view.py: what it serves, and what it refuses. The page itself: tests/training/viewer/."""

import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import view
from training.checkpoint import load_generator
from training.visualization.latents import save_ws
from view import main


def run(*options):
    return CliRunner().invoke(main, [*options, "--device=cpu"])


def test_a_page_by_itself(checkpoint_path, tmp_path):
    result = run(f"--network={checkpoint_path}", f"--static={tmp_path / 'heads.html'}", "--heads=2,5", "--trunc=0.5")
    assert result.exit_code == 0, result.output
    assert result.output == f"{tmp_path / 'heads.html'}\n"
    text = (tmp_path / "heads.html").read_text()
    assert text.startswith("<!DOCTYPE html>") and '"seed": 5' in text and "{{" not in text


def test_a_port_in_use_is_named(checkpoint_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run(f"--network={checkpoint_path}", f"--port={port}")
    assert result.exit_code == 1
    assert result.output == f"Error: --host=127.0.0.1 --port={port}: Address already in use; give another --port\n"


def test_the_package_that_serves_is_named_where_it_is_missing(checkpoint_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    monkeypatch.delitem(sys.modules, "training.viewer.page", raising=False)
    result = run(f"--network={checkpoint_path}", "--port=8765")
    assert result.exit_code == 1
    assert result.output == "Error: pages need the package viser: pip install '.[view]', or viser\n"


def test_a_network_is_served_on_this_machine_alone_unless_asked(checkpoint_path, monkeypatch):
    served = []

    def page(*arguments):
        served.append(arguments)
        return SimpleNamespace(port=8765, close=lambda: served.append("closed"))

    def end(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "_page", lambda: page)
    monkeypatch.setattr(view, "keep_serving", end)
    result = run(f"--network={checkpoint_path}", "--port=8765", "--seed=3")
    assert result.exit_code == 0 and "Open http://localhost:8765" in result.output
    (studio, head, host, port, resolution, moving), closed = served
    assert (host, port, resolution, moving, closed) == ("127.0.0.1", 8765, 512, 256, "closed")
    assert list(studio.networks) == [head.network] and head.seed == 3


def test_snapshots_of_a_run_are_offered_as_they_are_written(monkeypatch):
    offered, rounds = [], iter([{"a": 1}, ValueError("gone"), {"a": 1, "b": 2}, {"b": 2}])
    page = SimpleNamespace(studio=SimpleNamespace(networks={"a": 1}), offer=lambda *what: offered.append(what))
    monkeypatch.setattr(view, "WATCHED_EVERY", 0.0)

    def watch():
        found = next(rounds, None)
        if found is None:
            raise KeyboardInterrupt
        if isinstance(found, ValueError):
            raise found
        return found

    with pytest.raises(KeyboardInterrupt):
        view.keep_serving(page, watch)
    assert offered == [({"a": 1, "b": 2}, "b"), ({"b": 2}, None)]


def test_heads_of_a_file_stand_in_for_seeds(checkpoint_path, tmp_path):
    G = load_generator(checkpoint_path)
    save_ws(tmp_path / "w.npz", torch.zeros(1, G.num_ws, G.w_dim))
    page = f"--static={tmp_path / 'heads.html'}"
    result = run(f"--network={checkpoint_path}", page, f"--w-file={tmp_path / 'w.npz'}")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "heads.html").read_text().count("data:image/jpeg") == 1  # the file's one, not 16 of them
    result = run(f"--network={checkpoint_path}", page, "--heads=0,1", f"--w-file={tmp_path / 'w.npz'}")
    assert result.exit_code == 1 and "w.npz holds 1 head(s)" in result.output
    save_ws(tmp_path / "w.npz", torch.zeros(1, G.num_ws, G.w_dim + 1))
    result = run(f"--network={checkpoint_path}", page, f"--w-file={tmp_path / 'w.npz'}")
    assert result.exit_code == 1 and "w.npz: ws must have shape [B, " in result.output
