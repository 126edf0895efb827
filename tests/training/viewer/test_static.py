"""Tests the page that shows heads by itself: what is in it, and in a browser what it draws."""

import base64
import gzip
import json
import re

import numpy as np
import pytest

from benchmarks.browser import open_page, picture_of
from tests.training.viewer.balls import make_studio, psnr
from tests.training.viewer.browser import needs_browser
from tests.training.visualization import toys
from training.viewer import static
from training.viewer.static import write_page
from training.viewer.studio import HeadChoice, Shown

COUNT = 60  # splats of a ball


@pytest.fixture
def studio(monkeypatch, geometry):
    return make_studio(monkeypatch, geometry)


def test_a_page_holds_everything(studio, tmp_path):
    text = write_page(tmp_path / "heads.html", studio, "a", [3, 1], 0.7).read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", text)  # nothing is fetched
    meta = json.loads(re.search(r'<script id="meta"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    data = gzip.decompress(base64.b64decode(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1]))
    assert [head["seed"] for head in meta["heads"]] == [3, 1] and meta["count"] == COUNT
    assert len(data) == 2 * 17 * COUNT
    scene = studio.scene(HeadChoice("a", 1, psi=0.7))
    low, high = meta["means"]
    steps = np.frombuffer(data, "<u2", 3 * COUNT, 17 * COUNT).reshape(-1, 3)
    means = low + steps / 65535 * (high - low)
    np.testing.assert_allclose(means, scene.means[0].numpy(), atol=(high - low) / 65535)
    rgba = np.frombuffer(data, np.uint8, 4 * COUNT, (17 + 13) * COUNT).reshape(-1, 4) / 255
    np.testing.assert_allclose(rgba[:, :3], scene.colors()[0].clamp(0, 1).numpy(), atol=0.002)
    np.testing.assert_allclose(rgba[:, 3:], scene.opacities()[0].numpy(), atol=0.002)


def test_what_has_no_page_is_refused(monkeypatch, geometry, studio, tmp_path):
    monkeypatch.setattr(static, "MOST_BYTES", 2 * 17 * COUNT)
    with pytest.raises(ValueError, match=r"3 heads of 60 splats do not fit on a page .*; 2 do"):
        write_page(tmp_path / "heads.html", studio, "a", [0, 1, 2], 0.7)
    fog = make_studio(monkeypatch, geometry, toys.FogGenerator)
    with pytest.raises(ValueError, match="--static: the scenes of this network are no splats"):
        write_page(tmp_path / "heads.html", fog, "a", [0], 0.7)
    assert not list(tmp_path.iterdir())


@needs_browser
def test_a_browser_draws_what_we_draw(studio, geometry, tmp_path):
    """From file://; worst seen of a trained network: 50.6 dB, at 64 and 256 pixels."""
    page = write_page(tmp_path / "heads.html", studio, "a", [3, 1, 7], 0.7)
    with open_page(page.as_uri(), tmp_path / "profile", (240, 240)) as tab:
        tab.wait("'picture' in window || document.getElementById('trouble') !== null")
        assert tab.value("document.querySelectorAll('#heads button').length") == 3
        for head, seed, yaw in ((0, 3, 0.0), (2, 7, -0.5)):
            ours = studio.picture(
                HeadChoice("a", seed), Shown(background=(0, 0, 1)), geometry.orbit(yaw, 0.1), (64, 64)
            )
            theirs = picture_of(tab.value(f"picture({head}, 0, {yaw}, 0.1, 64)"))
            assert psnr(ours, theirs) > 35 and ours.std() > 20
        halfway = picture_of(tab.value("picture(0, 0.5, 0, 0, 64)"))
        ends = [picture_of(tab.value(f"picture({head}, 0, 0, 0, 64)")) for head in (0, 1)]
        assert all(psnr(halfway, end) < 30 for end in ends)
        assert tab.errors == []
