"""Tests report.py: what is on the page, that it needs nothing else, long runs, unfinished lines, a browser's view."""

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
    """Writes a run of 10,000 ticks, with a spike in R1, a value that was not finite and a last line cut short."""
    folder = tmp_path / "00000-a<b"
    folder.mkdir()
    (folder / "training_options.json").write_text(
        json.dumps({"preset": "tiny", "total_kimg": 30, "generator": {"z_dim": 64}})
    )
    with open(folder / "stats.jsonl", "w") as file:
        for i in range(10_000):
            record = {"step": i, "nimg": 8 * i, "Logits/real": 0.1, "Loss/D/r1_penalty": 99.0 if i == 5000 else 0.5}
            record |= {"Gaussians/level0/opacity": None if i == 7 else 0.4, "Gaussians/level1/opacity": 0.6}
            record |= {"Gaussians/level1/subpixel": 0.9, "Gaussians/per_pixel": 3.0}
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
        "Share of splats under half a pixel by level",
        "Splats over a pixel, by their opacity",
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


def set_options(run_dir, **options):
    (run_dir / "training_options.json").write_text(json.dumps(options))


def set_stats(run_dir, **values):
    (run_dir / "stats.jsonl").write_text("".join(json.dumps({"nimg": k, **values}) + "\n" for k in (0, 1000)))


def test_curves_are_those_of_all_runs_and_of_the_family(run_dir):
    values = {"Loss/D/r1_penalty": 1.0, "Gradient/D/norm": 2.0, "Gradient/A b/norm": 3.0, "Gradient/D/skipped": 0.0}
    set_stats(run_dir, **values)
    shown = {}
    for family in ("cgs", "of <tomorrow>"):
        set_options(run_dir, preset="tiny", family=family)
        shown[family] = page(run_dir)
    for text in shown.values():
        norms = text[text.index("Gradient norms") :].split("</figure>")[0]
        assert re.findall(r"</i>([^<]*)", norms) == ["Gradient/D/norm ", "Gradient/A b/norm "]
    assert "R1 penalty" in shown["cgs"] and "not known here" not in shown["cgs"]
    assert "R1 penalty" not in shown["of <tomorrow>"]
    assert "The family of &lt;tomorrow&gt; is not known here, so its own curves are left out." in shown["of <tomorrow>"]


def test_levels_are_charted_wherever_there_are_any(run_dir):
    set_options(run_dir, preset="tiny", family="another")
    assert "Opacity by level" in page(run_dir)
    set_stats(run_dir, **{"Gaussians/visible": 0.5})
    assert "by level" not in page(run_dir)


def test_nested_configuration_has_a_row_per_value(run_dir):
    stages = [{"from_nimg": 0, "batch": 8}, {"from_nimg": 1000, "batch": 4}]
    set_options(run_dir, family="cgs", objective={"gamma": 2.5, "clip": {}}, stages=stages, metrics=["a", "b"])
    rows = dict(re.findall(r"<tr><td>([^<]*)<td>([^<]*)", page(run_dir)))
    assert rows == {
        "family": "&quot;cgs&quot;",
        "objective.gamma": "2.5",
        "objective.clip": "{}",
        "stages[0].from_nimg": "0",
        "stages[0].batch": "8",
        "stages[1].from_nimg": "1000",
        "stages[1].batch": "4",
        "metrics": "[&quot;a&quot;, &quot;b&quot;]",
    }


@pytest.mark.parametrize(("text", "message"), [("[1]", "not a JSON object"), ("{", "not JSON")])
def test_options_that_are_none_are_refused(run_dir, text, message):
    (run_dir / "training_options.json").write_text(text)
    result = CliRunner().invoke(main, [str(run_dir)])
    assert result.exit_code == 1 and message in result.output and "training_options.json" in result.output


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
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert picture.shape[:2] == (1600, 1200)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # text, lines and bands, not an empty page
