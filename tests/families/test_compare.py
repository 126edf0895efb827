"""compare.py on four families: one protocol, values kept by content, a page that stands alone, equal training time."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import compare
import metrics
from tests.families.runs import run
from tests.training.gan import awaken
from training import checkpoint
from training.comparison import equal_time, systems
from training.dataset import ImageDataset
from training.families import family
from training.runs import launch, monitor
from training.runs.page import page
from training.runs.resume import data_mark

PRESETS = ("ball", "speck", "told", "micro")
METRICS = "swd16,swd3d_16,swd_yaw4,view_drift4,fid16_full"


def write_network(path: Path, preset: str, heads: Path, nimg: int = 4000, seed: int = 0, **fields: Any) -> Path:
    """Writes the checkpoint of an untrained network, as a run on `heads` would."""
    dataset = ImageDataset(heads)
    config = launch.resolve_config(dataset, str(heads), preset=preset, fields=fields)
    of = family(config.family)
    torch.manual_seed(seed)
    G, D = awaken(of.generator(config.generator), std=0.5), of.discriminator(config.discriminator)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "config": config.to_dict(),
        "geometry": dataset.geometry.to_dict(),
        "progress": {"nimg": nimg, "step": 1, "tick": 1, "data": data_mark(dataset)},
        "G": G.state_dict(),
        "D": D.state_dict(),
        "G_ema": G.state_dict(),
        "opt": {"G": {}, "D": {}},
        "grid": monitor.make_grid(config, dataset, G.z_dim),
        "best": {},
    }
    checkpoint.save_checkpoint(path, state)
    return path


@pytest.fixture(scope="module")
def networks(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {name: write_network(folder / f"{name}.pkl", name, heads) for name in PRESETS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the comparison `first`, with the native code of the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def private_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compare.dnnlib.cache_dir
    monkeypatch.setattr(
        compare.dnnlib, "cache_dir", lambda *p: cache.joinpath(*p) if p[0] in ("comparison", "metrics") else real(*p)
    )
    for name in ("SPLATGAN_DETECTOR", "SPLATGAN_DETECTOR_VGG"):
        monkeypatch.delenv(name, raising=False)


def call(heads: Path, outdir: Path, paths: Any, *more: str, code: int = 0) -> str:
    named = ",".join(map(str, paths))
    options = (f"--networks={named}", f"--data={heads}", f"--outdir={outdir}", "--device=cpu", "--detector=tiny")
    return run(compare.main, *options, "--seeds=0-1", *more, code=code)


def record(outdir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outdir / "comparison.json").read_text())
    return found


@pytest.fixture
def first(heads: Path, networks: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of a comparison of all four; after the first test it comes from the cache."""
    call(heads, tmp_path / "table", networks.values(), f"--metrics={METRICS}", "--quoted=cgsgan")
    return tmp_path / "table"


def count_calls(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[Any]:
    """Lets a function go on as before, and returns the list of its second to last calls' arguments."""
    calls: list[Any] = []
    original: Callable[..., Any] = getattr(place, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(place, name, counted)
    return calls


# ---------------------------------------------------------------- values


def test_every_family_is_measured_as_calc_metrics_does(first: Path, heads: Path, networks: dict[str, Path]) -> None:
    found = record(first)
    assert [s["name"] for s in found["systems"]] == list(PRESETS)
    assert [s["family"] for s in found["systems"]] == ["balls", "specks", "told", "cgs"]
    dataset = ImageDataset(heads)
    for system in found["systems"]:
        G = checkpoint.load_generator(networks[system["name"]])
        for name in METRICS.split(","):
            value = metrics.compute_metric(name, G, dataset, detector="tiny", cache=False).value
            assert system["results"][name]["results"][name] == pytest.approx(value, rel=1e-6), (system["name"], name)
        assert system["kimg"] == 4 and system["parameters"] == sum(p.numel() for p in G.parameters())
        assert system["scene"] == G.scene_size() and min(system["sec_per_image"], system["sec_per_view"]) > 0
        if system["family"] == "cgs":  # scenes of the others cost next to nothing
            assert system["sec_per_image"] > system["sec_per_view"]
        assert system["checkpoint_bytes"] == networks[system["name"]].stat().st_size
    assert found["protocol"]["background"] == ["white"] and found["data"]["items"] == 24


def test_only_the_family_that_is_told_a_camera_depends_on_it(first: Path) -> None:
    for system in record(first)["systems"]:
        plain, frontal = (system["results"][name]["results"] for name in ("swd16", "swd3d_16"))
        assert (plain["mean"] == frontal["mean"]) == (system["name"] != "told"), system["name"]
        drift = system["results"]["view_drift4"]["results"]["view_drift4"]
        assert (drift > 0.01) == (system["name"] == "told")


def test_a_second_call_opens_no_network_and_writes_the_same(
    first: Path, heads: Path, networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    with monkeypatch.context() as patch:
        opened = count_calls(patch, checkpoint, "load_generator")
        said = call(heads, first, networks.values(), f"--metrics={METRICS}", "--quoted=cgsgan")
        assert opened == [] and said.count("kept from an earlier call") == 20
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    measured = count_calls(monkeypatch, metrics, "compute_metric")
    said = call(heads, first, networks.values(), f"--metrics={METRICS},swd24")
    assert [arguments[0] for arguments in measured] == ["swd24"] * 4
    assert said.count("kept from an earlier call") == 20


def test_values_go_by_content(first: Path, heads: Path, networks: dict[str, Path], tmp_path: Path) -> None:
    """A copy in another folder is known; one of other weights, seed, detector or data is not."""
    copy = tmp_path / "elsewhere" / "renamed.pkl"
    copy.parent.mkdir()
    shutil.copy(networks["ball"], copy)
    other = write_network(tmp_path / "other.pkl", "ball", heads, seed=1)
    shutil.copytree(heads.parent, tmp_path / "copied")

    def new(path: Path, *more: str, data: Path = heads) -> bool:
        said = call(data, tmp_path / "out", [path], "--metrics=fid16_full", *more)
        return "kept from an earlier call" not in said

    assert not new(copy) and not new(copy, data=tmp_path / "copied" / heads.name)
    assert new(other) and new(copy, "--seed=1") and new(copy, "--background=black")
    assert new(copy, "--no-cache") and not new(copy)
    picture = next((tmp_path / "copied" / heads.name).glob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    assert new(copy, data=tmp_path / "copied" / heads.name)


def test_what_an_interrupted_call_computed_is_kept(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_network(tmp_path / f"{seed}.pkl", "speck", heads, seed=seed) for seed in (5, 6)]
    original, calls = metrics.compute_metric, []

    def stopped(name: str, *arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(name, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "compute_metric", stopped)
        assert "Aborted!" in call(heads, tmp_path / "out", paths, "--metrics=swd16,view_drift4", code=1)
    assert calls == ["swd16", "view_drift4"] * 2 and not (tmp_path / "out").exists()
    measured = count_calls(monkeypatch, metrics, "compute_metric")
    call(heads, tmp_path / "out", paths, "--metrics=swd16,view_drift4")
    assert [arguments[0] for arguments in measured] == ["view_drift4"]


def test_a_network_that_is_not_finite_has_a_reason_in_its_cell(
    heads: Path, networks: dict[str, Path], tmp_path: Path
) -> None:
    state = checkpoint.load_checkpoint(networks["ball"])
    state["G_ema"]["to_w.weight"][:] = float("nan")
    checkpoint.save_checkpoint(tmp_path / "nan.pkl", {k: v for k, v in state.items() if k != "checksum"})
    said = call(heads, tmp_path / "out", [networks["ball"], tmp_path / "nan.pkl"], "--metrics=swd16", code=1)
    reason = "the generator's images hold NaN or infinite values"
    assert f"Error: --metrics: 1 of 2 values are missing in the table: nan: swd16: {reason}" in said
    good, bad = (system["results"]["swd16"] for system in record(tmp_path / "out")["systems"])
    assert good["results"]["swd16"] > 0 and bad == {"unavailable": reason}
    assert f"1. swd16 of nan: {reason}" in (tmp_path / "out" / "comparison.md").read_text().replace("\\", "")


# ---------------------------------------------------------------- what is written


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page, and whether those that need an end have one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("div", "figure", "figcaption", "svg", "table", "span", "ol", "body", "h1", "h2"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag in self.open:
            assert self.open.pop() == tag


def test_the_page_opens_and_needs_nothing(first: Path) -> None:
    text = (first / "comparison.html").read_text()
    elements = Elements()
    elements.feed(text)
    assert elements.open == [] and text.startswith("<!doctype html>")
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert [p["alt"] for p in pictures] == ["Data: images of the nearest cameras", *PRESETS]
    for attributes in pictures:
        kind, data = (attributes["src"] or "").split(",")
        assert kind == "data:image/png;base64"
        png = Image.open(io.BytesIO(base64.b64decode(data)))
        assert png.size == (7 * 32, 2 * 32)  # seven yaws, two seeds
    assert re.findall(r"https?://|url\(|@import|<script|<link", text) == []
    assert [tag for tag, _ in elements.found].count("polyline") == 4  # a line per system by yaw
    rows = text.split("</table>")[0].count("<tr")
    assert rows == 1 + 4 + 6 and text.count("class=quoted") == 6 and "README of CGS-GAN" in text
    assert "tiny detector: a smoke test" in text


def test_columns_of_pictures_are_the_datas_yaws(first: Path, heads: Path) -> None:
    yaws = record(first)["protocol"]["picture_yaws_deg"]
    expected = monitor.grid_yaws(ImageDataset(heads)).rad2deg().tolist()
    assert yaws == pytest.approx(expected, abs=0.06) and len(yaws) == 7
    assert f"<span>{yaws[0]:+.0f}°</span>" in (first / "comparison.html").read_text()


def test_the_table_marks_the_best(first: Path) -> None:
    lines = (first / "comparison.md").read_text().splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    column = header.index("swd16 ↓")
    values = {s["name"]: s["results"]["swd16"]["results"]["swd16"] for s in record(first)["systems"]}
    for line in lines[2:6]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        best = min(values, key=lambda name: values[name]) == cells[0]
        assert cells[column] == (f"**{values[cells[0]]:.4g}**" if best else f"{values[cells[0]]:.4g}")
    assert "FID (quoted)" in header and "*CGS-GAN, FFHQC 512 (quoted)*" in lines[2 + 4 + 3]


def test_names_with_marks_are_text(heads: Path, networks: dict[str, Path], tmp_path: Path) -> None:
    call(heads, tmp_path, [networks["ball"]], "--metrics=swd16", "--names=<b>|*&")
    assert "&lt;b&gt;|*&amp;" in (tmp_path / "comparison.html").read_text()
    assert r"\<b>\|\*&" in (tmp_path / "comparison.md").read_text()
    assert "<title>&lt;i&gt;</title>" in page("<i>", [])


# ---------------------------------------------------------------- which networks


def test_run_folders_give_their_newest_snapshot(heads: Path, tmp_path: Path) -> None:
    for number, nimg in (("000000_00000900", 900), ("000000", 100)):
        write_network(tmp_path / "00003-mine" / f"network-snapshot-{number}.pkl", "ball", heads, nimg)
    write_network(tmp_path / "00004-killed" / "state-latest.pkl", "ball", heads, 300, seed=3)
    (tmp_path / "00003-mine" / "training_options.json").write_text("{}")
    runs = f"--runs={tmp_path / '00003-mine'},{tmp_path / '00004-killed'}"
    common = (f"--data={heads}", f"--outdir={tmp_path / 'out'}", "--device=cpu", "--metrics=swd16")
    run(compare.main, runs, *common)
    found = record(tmp_path / "out")["systems"]
    assert [(s["name"], s["kimg"]) for s in found] == [("00003-mine", 0.9), ("00004-killed", 0.3)]


def test_names_are_made_unique() -> None:
    paths = [Path("/a/one.pkl"), Path("/b/one.pkl"), Path("/b/two.pkl")]
    assert systems.unique_names(paths) == ["a/one", "b/one", "two"]


def test_each_over_its_own_background(heads: Path, networks: dict[str, Path], tmp_path: Path) -> None:
    paths = [networks["ball"]]
    for colour in ("black", "0.5,0.5,0.5"):
        dataset_path = write_network(tmp_path / f"{len(paths)}.pkl", "speck", heads, seed=len(paths))
        state = checkpoint.load_checkpoint(dataset_path)
        state["config"]["background"] = colour
        checkpoint.save_checkpoint(dataset_path, {k: v for k, v in state.items() if k != "checksum"})
        paths.append(dataset_path)
    assert "was trained over 0.5,0.5,0.5, so no picture of it is fair over black; --background=own" in call(
        heads, tmp_path / "out", paths, "--metrics=swd16", code=1
    )
    call(heads, tmp_path / "out", paths[:2], "--metrics=swd16")  # random suits any colour
    assert record(tmp_path / "out")["protocol"]["background"] == ["black"]
    call(heads, tmp_path / "out", paths, "--metrics=swd16", "--background=own")
    assert [s["background"] for s in record(tmp_path / "out")["systems"]] == ["white", "black", "0.5,0.5,0.5"]
    assert "reals and fakes over 0.5,0.5,0.5" in (tmp_path / "out" / "comparison.md").read_text()


# ---------------------------------------------------------------- equal time


class Trainings:
    """Stands in for train.py: notes its arguments, and leaves a run that has trained as long as it is told."""

    def __init__(self, heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heads, self.calls = heads, []  # type: ignore[var-annotated]
        self.stop_after: float | None = None  # minutes
        monkeypatch.setattr(equal_time, "_run", self)

    def __call__(self, command: list[str]) -> int:
        given = dict(argument[2:].split("=", 1) for argument in command if argument.startswith("--"))
        minutes = float(given["minutes"])
        self.calls.append((given["preset"], minutes))
        stopped, self.stop_after = self.stop_after, None
        folder = equal_time.newest_run(Path(given["outdir"]), given["desc"])
        folder = folder or Path(given["outdir"]) / f"0000{len(self.calls)}-{given['desc']}"
        nimg = 100 * round(60 * (stopped or minutes))  # at 10 s a kimg
        name = "state-latest.pkl" if stopped else "network-snapshot-000009.pkl"
        write_network(folder / name, given["preset"], self.heads, nimg)
        line = {"nimg": nimg // 2, "timing": {"sec_per_kimg": 10.0}}
        (folder / "stats.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "training_options.json").write_text("{}")
        return equal_time.EXIT_STOPPED if stopped else 0


def test_presets_train_for_equal_time_and_go_on(heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings(heads, monkeypatch)
    options = (f"--data={heads}", f"--outdir={tmp_path}", "--device=cpu", "--metrics=swd16")
    options = ("--train=ball,speck", "--minutes=3", *options)
    trainings.stop_after = 2
    said = run(compare.main, *options, code=1)
    assert "--train=ball: train.py was stopped; the same command goes on" in said
    run(compare.main, *options)
    assert trainings.calls == [("ball", 3.0), ("ball", 1.0), ("speck", 3.0)]
    assert [s["name"] for s in record(tmp_path)["systems"]] == ["ball", "speck"]
    text = (tmp_path / "comparison.html").read_text()
    assert "Trained for 3 minutes each, one after the other: ball, speck." in text
    run(compare.main, *options)  # has all it needs
    assert len(trainings.calls) == 3


def test_seconds_are_those_of_the_newest_state(heads: Path, tmp_path: Path) -> None:
    lines = [(100, 100.0), (2000, 10.0), (3000, 20.0), (9000, 10.0)]
    records = [json.dumps({"nimg": n, "timing": {"sec_per_kimg": pace}}) for n, pace in lines]
    (tmp_path / "stats.jsonl").write_text("\n".join(records) + '\n{"nimg": 1')
    assert equal_time.seconds_trained(tmp_path) == 0
    write_network(tmp_path / "state-latest.pkl", "ball", heads, nimg=3500)  # lines after it are trained again
    assert equal_time.seconds_trained(tmp_path) == pytest.approx(10 + 19 + 20 + 10)


def test_a_stop_signal_reaches_the_training_once(tmp_path: Path) -> None:
    block = "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {2, 15}); "
    child = f"open({str(tmp_path / 'ready')!r}, 'w').close(); print(signal.sigwait({{2, 15}})); sys.exit(75)"

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=stop, daemon=True).start()
    assert equal_time._run([sys.executable, "-c", block + child]) == 75
    assert signal.getsignal(signal.SIGINT) is before


def test_train_py_is_called_and_stops_by_the_clock(heads: Path, tmp_path: Path) -> None:
    options = ("--train=micro", "--minutes=0.02", f"--data={heads}", f"--outdir={tmp_path}", "--device=cpu")
    run(compare.main, *options, "--metrics=swd16")
    (system,) = record(tmp_path)["systems"]
    assert system["name"] == "micro" and system["kimg"] > 0
    (folder,) = (tmp_path / "runs").iterdir()
    config = json.loads((folder / "training_options.json").read_text())
    assert folder.name == "00000-micro-0.02min" and config["preset"] == "micro" and config["metrics"] == []


def test_two_processes_write_the_table_of_one(heads: Path, networks: dict[str, Path], tmp_path: Path) -> None:
    values = []
    options = [f"--networks={networks['micro']}", f"--data={heads}", "--device=cpu", "--metrics=swd16,view_drift4"]
    for count in (1, 2):
        out = tmp_path / str(count)
        own = [*options, "--no-cache", f"--outdir={out}", f"--gpus={count}"]
        if count == 1:
            said = run(compare.main, *own)
        else:
            command, environment = [sys.executable, compare.__file__, *own], os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            said = done.stderr
        assert said.count("[1/1] micro: swd16 ") == 1
        (system,) = record(out)["systems"]
        values.append([system["results"][name]["results"][name] for name in ("swd16", "view_drift4")])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
