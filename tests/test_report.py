"""report.py: what is on the page, that it needs nothing else, long runs, unfinished lines, and a browser's view."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from report import main
from training.runs.charts import downsample, ticks

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def run_dir(tmp_path):
    """A run of 10,000 ticks, with a spike in R1, a value that was not finite and a last line cut short."""
    folder = tmp_path / "00000-a<b"
    folder.mkdir()
    (folder / "training_options.json").write_text(
        json.dumps({"preset": "tiny", "total_kimg": 30, "generator": {"z_dim": 64}})
    )
    with open(folder / "stats.jsonl", "w") as file:
        for i in range(10_000):
            record = {"step": i, "nimg": 8 * i, "Logits/real": 0.1, "Loss/D/r1_penalty": 99.0 if i == 5000 else 0.5}
            record |= {"Gaussians/level0/opacity": None if i == 7 else 0.4, "Gaussians/level1/opacity": 0.6}
            file.write(json.dumps(record) + "\n")
        file.write('{"step": 10')
    result = {"results": {"swd200": 40.5}, "metric": "swd200", "snapshot_pkl": "network-snapshot-000010_00010472.pkl"}
    (folder / "metric-swd200.jsonl").write_text(json.dumps(result) + "\n")
    for name in ("reals", "cameras", *(f"fakes{k:06d}" for k in range(9))):
        Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(folder / f"{name}.png")
    return folder


def page(run_dir):
    result = CliRunner().invoke(main, [str(run_dir)])
    assert result.exit_code == 0, result.output
    return (run_dir / "report.html").read_text()


def test_page_holds_everything_and_needs_nothing(run_dir):
    text = page(run_dir)
    for wanted in (
        "Logits",
        "R1 penalty",
        "Opacity by level",
        "level1",
        "swd200",
        "z_dim",
        "reals",
        "cameras",
        "a&lt;b",
    ):
        assert wanted in text, wanted
    sources = re.findall(r"""(?:src|href)=["']?([^"'>]*)""", text)
    assert len(sources) == 8 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert re.findall(r"https?://|url\(|@import|<script|<link", text) == []
    assert re.findall(r"alt=\"(fakes\d+)", text) == [f"fakes{k:06d}" for k in (0, 2, 3, 5, 6, 8)]


def test_long_runs_stay_small_and_keep_their_spikes(run_dir):
    text = page(run_dir)
    assert len(text) < 200_000
    chart = text[text.index("R1 penalty") :].split("</figure>")[0]
    assert ">100<" in chart  # the axis reaches the spike
    points = downsample([(i, 99.0 if i == 5000 else 0.0) for i in range(10_000)])
    assert len(points) == 300 and max(p[3] for p in points) == 99 and points[-1][0] == 9999


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (5, 5), (0, 0), (1e-7, 3e-7), (-1e5, -9e4)])
def test_ticks_are_round_and_enclose(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and 3 <= len(found) <= 9


def test_what_is_no_run_is_refused(run_dir, tmp_path):
    assert "no run folder" in CliRunner().invoke(main, [str(tmp_path)]).output
    (run_dir / "stats.jsonl").write_text("{}\nnonsense\n{}\n")
    result = CliRunner().invoke(main, [str(run_dir)])
    assert result.exit_code == 1 and "stats.jsonl: line 2 is not a JSON object" in result.output


def test_a_browser_draws_it(run_dir, tmp_path):
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    page(run_dir)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1200,1600", f"--screenshot={tmp_path / 'page.png'}", (run_dir / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert picture.shape[:2] == (1600, 1200)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # text, lines and bands, not an empty page
