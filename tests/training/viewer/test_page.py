"""Tests the served page: with viewers of our own, and in a browser."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.browser import PATIENCE, open_page
from tests.training.viewer.balls import BallGenerator, make_studio, psnr
from tests.training.viewer.browser import needs_browser
from tests.training.visualization import toys
from training.control.blocks import Blocks
from training.viewer.pace import Pace, Quality
from training.viewer.studio import HeadChoice
from training.visualization.camera_paths import read_cameras

pytest.importorskip("viser")
from training.viewer.page import ENLARGED, Page

FRONT = np.array([0.0, 1.0, 0.0, 0.0])  # of a camera that looks along -z, upright: half a turn about x


class Viewer:
    """What a page needs of a viewer; keeps what it is shown."""

    def __init__(self, position=(0.0, 0.0, 2.7)):
        self.client_id, self.pictures, self.files = 0, [], {}
        self.camera = SimpleNamespace(
            wxyz=FRONT, position=ENLARGED * np.array(position), fov=2 * math.atan(0.5 / 4.2647), aspect=1.5
        )
        self.scene = self

    def set_background_image(self, image, **_):
        self.pictures.append(image)

    def send_file_download(self, name, content, save_immediately):
        self.files[name] = content


@pytest.fixture
def page(monkeypatch, geometry, request):
    studio = make_studio(monkeypatch, geometry, getattr(request, "param", BallGenerator))
    page = Page(studio, HeadChoice("a", 3, 4), "127.0.0.1", 8400, 64, 32)
    yield page
    page.close()


def test_pictures_are_coarse_while_moving_and_whole_when_still(page):
    viewer = Viewer()
    page.paces[0] = Pace()
    page._draw(viewer, Quality.MOVING)
    page._draw(viewer, Quality.STILL)
    coarse, whole = viewer.pictures
    assert coarse.shape[0] <= 32 and whole.shape == (64, 96, 3)
    camera = page._camera(viewer.camera)
    expected = page.studio.picture(HeadChoice("a", 3, 4), page.shown(), camera, (64, 96))
    np.testing.assert_array_equal(whole, expected)
    assert expected.std() > 10 and page._gui["said"].content == ""


def test_controls_change_what_is_shown(page):
    gui = page._gui
    for name, value in (
        ("seed", 9),
        ("mix", 0.5),
        ("psi", 0.3),
        ("direction", "pca2"),
        ("amount", -1.5),
        ("told_yaw", 20.0),
    ):
        gui[name].value = value
    assert page.head() == HeadChoice("a", 9, 4, 0.5, "all", 0.3, 20.0, "pca2", -1.5)
    gui["scale"].value, gui["background"].value, gui["panel"].value = 2.0, (255, 0, 51), "depth"
    shown = page.shown()
    assert shown.inspection.scale == 2 and shown.panel == "depth" and shown.background == (1.0, 0.0, 0.2)
    assert not gui["levels"].visible and not gui["colors"].visible and gui["scale"].visible  # what the network lacks


def test_blocks_of_the_latent_are_offered_where_there_are_some(page):
    page.shown()
    assert page._gui["part"].options == ("all",) and not page._gui["part"].visible
    page.studio.generator("b").blocks = Blocks({"shape": slice(0, 1), "colour": slice(1, 4)})
    page._gui["network"].value = "b"
    page.shown()
    assert page._gui["part"].options == ("all", "shape", "colour") and page._gui["part"].visible
    page._gui["part"].value = "colour"
    assert page.head().part == "colour"
    page._gui["network"].value = "a"
    assert page.head().part == "all"


def test_what_cannot_be_shown_is_said_on_the_page(page, monkeypatch):
    def fail(*_):
        raise ValueError("the file is gone")

    monkeypatch.setattr(page.studio, "picture", fail)
    page._draw(Viewer(), Quality.STILL)
    assert page._gui["said"].content == "**the file is gone**"


def test_a_recorded_path_is_one_that_films_follow(page, tmp_path, geometry):
    viewer, event = Viewer(), SimpleNamespace()
    event.client = viewer
    page._draw(viewer, Quality.STILL)
    assert page.path == []
    page._gui["record"].value = True
    for x in (0.0, 0.5):
        viewer.camera.position = ENLARGED * np.array([x, 0.0, 2.7])
        page._draw(viewer, Quality.MOVING)
    page._send(event, "path.json", lambda: json.dumps(page.path).encode())
    (tmp_path / "path.json").write_bytes(viewer.files["path.json"])
    cameras = read_cameras(tmp_path / "path.json", geometry)
    assert cameras.shape == (2,)
    np.testing.assert_allclose(cameras.positions[1].numpy(), [0.5, 0.0, 2.7], atol=1e-6)
    np.testing.assert_allclose(cameras.intrinsics[0].numpy(), np.array(geometry.intrinsics), atol=1e-6)


def test_files_reach_the_viewer_who_asks(page):
    viewer = Viewer()
    page._send(SimpleNamespace(client=viewer), "head.glb", lambda: page._file("glb"))
    assert viewer.files["head.glb"][:4] == b"glTF"


def test_new_networks_are_offered_and_followed_if_asked(page):
    page.offer({"a": "a.pkl", "b": "b.pkl", "c": "c.pkl"}, "c")
    assert page._gui["network"].options == ("a", "b", "c") and page.head().network == "a"
    page._gui["newest"].value = True
    page.offer({"a": "a.pkl", "c": "c.pkl", "d": "d.pkl"}, "d")
    assert page.head().network == "d"


@pytest.mark.parametrize("page", [toys.FogGenerator], indirect=True)
def test_a_network_without_splats_has_a_page(page, monkeypatch):
    assert not page._gui["scale"].visible or page.shown().inspection.asked() == []
    with pytest.raises(ValueError, match="no splats"):
        page._file("ply")


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@needs_browser
def test_a_browser_shows_pictures_and_splats(page, tmp_path):
    """The picture behind the scene in a screenshot, splats in the browser's own picture of its scene."""
    home = page.studio.generator("a").geometry.frontal()
    with open_page(f"http://127.0.0.1:{page.port}", tmp_path / "profile", (700, 420)) as tab:
        wait_for(page.server.get_clients)
        [client] = page.server.get_clients().values()
        wait_for(lambda: np.allclose(client.camera.position / ENLARGED, home.positions.numpy(), atol=1e-3))
        page.height = client.camera.image_height
        page._changed()
        wait_for(lambda: all(pace.shown is Quality.STILL for pace in page.paces.values()))
        size = client.camera.image_height, client.camera.image_width
        ours = page.studio.picture(page.head(), page.shown(), page._camera(client.camera), size)
        free = slice(150, None), slice(200, 360)  # clear of the panels, and of what is said of software WebGL
        assert ours[free].std() > 10
        wait_for(lambda: psnr(tab.screenshot(tmp_path / "page.png")[free], ours[free]) > 30)

        page._gui["client"].value = True
        wait_for(lambda: page._splats_of is not None)
        pose = {"wxyz": client.camera.wxyz, "position": client.camera.position, "fov": client.camera.fov}
        # Of the window's own size: in others viser takes the focal length of the window.
        wait_for(lambda: psnr(client.get_render(*size, **pose)[..., :3], ours) >= 30)
