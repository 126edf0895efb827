"""Serves a studio's heads as a page: the only module that knows viser (MIT), which brings page, controls and camera.

Pictures are rendered here and sent as the background of the page's scene, one per viewer; or splats are sent once and
rendered by the browser.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import viser
from torch import Tensor

import dnnlib
from gaussian import Cameras
from gaussian.export import FORMATS
from gaussian.rotations import quats_to_matrices
from training.checkpoint import CheckpointError
from training.families.base import Generator
from training.families.inspection import Inspection
from training.viewer.pace import Pace, Quality, Size
from training.viewer.studio import ALL, HeadChoice, Shown, Studio, as_data_camera, png, viewing_camera
from training.visualization import video

ENLARGED = 30.0  # page units per world unit: the page keeps covariances as float16, which splats of a head underflow
JPEG = {Quality.MOVING: 60, Quality.STILL: 92}
YAWS = {"front": 0.0, "left": -45.0, "right": 45.0, "side": 90.0, "back": 180.0}
COLORS = ("own", "levels", "points")


class Page:
    """Shows a studio's networks at a port. `close` ends it."""

    def __init__(self, studio: Studio, first: HeadChoice, host: str, port: int, height: int, moving_height: int):
        self.studio, self.height = studio, height
        self.size = Size(most=min(height, moving_height))
        self.paces: dict[int, Pace] = {}
        self.path: list[list[float]] = []  # recorded cameras, labels of 25 numbers
        self.pictures = 0  # sent so far
        self._supported: tuple[str, set[str]] = ("", set())
        self._splats_of: Any = None
        self._gui: dict[str, Any] = {}  # handles of the controls
        self._wake, self._ended = threading.Condition(), False
        self._studio_lock = threading.Lock()
        self.server = viser.ViserServer(host, port, label="SplatGAN", verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.scene.set_up_direction("+y")
        geometry = studio.generator(first.network).geometry
        home = self.server.initial_camera
        home.position, home.look_at = (
            geometry.frontal().positions.numpy() * ENLARGED,
            np.array(geometry.pivot) * ENLARGED,
        )
        home.fov = 2 * math.atan(0.5 / geometry.intrinsics[1][1])
        self._add_controls(first)
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(self._left)
        self._drawer = threading.Thread(target=self._draw_until_closed, daemon=True)
        self._drawer.start()

    @property
    def port(self) -> int:
        return self.server.get_port()

    def close(self) -> None:
        """Ends drawing and serving."""
        self._ended = True
        with self._wake:
            self._wake.notify_all()
        self._drawer.join()
        self.server.stop()

    def offer(self, networks: Mapping[str, Path], follow: str | None) -> None:
        """Offers these networks from now on, and shows `follow`, if it is one, where the newest is to be shown."""
        self.studio.networks = dict(networks)
        self._gui["network"].options = tuple(networks)
        if follow and self._gui["newest"].value:
            self._gui["network"].value = follow

    # ---------------------------------------------------------------- controls

    def _add_controls(self, first: HeadChoice) -> None:
        gui, made = self.server.gui, self._gui
        made["said"] = gui.add_markdown("")
        with gui.add_folder("Head"):
            names = tuple(self.studio.networks)
            made["network"] = gui.add_dropdown("network", names, initial_value=first.network)
            made["newest"] = gui.add_checkbox("show the newest", False, hint="as the run writes its snapshots")
            made["seed"] = gui.add_number("seed", first.seed, min=0, max=2**32 - 1, step=1)
            made["other"] = gui.add_number("second seed", first.other, min=0, max=2**32 - 1, step=1)
            made["mix"] = gui.add_slider("towards it", 0.0, 1.0, 0.01, first.mix)
            made["part"] = gui.add_dropdown("of it", (ALL,), initial_value=ALL, hint="a block of the latent alone")
            made["psi"] = gui.add_slider("truncation", 0.0, 1.5, 0.01, first.psi)
            made["told_yaw"] = gui.add_slider("camera told", -90.0, 90.0, 1.0, 0.0, hint="to the mapping; degrees")
            ways = self.studio.direction_names(first.network)
            made["direction"] = gui.add_dropdown("direction of w", ways, initial_value=ways[0])
            made["amount"] = gui.add_slider("along it", -4.0, 4.0, 0.1, 0.0, hint="standard deviations")
        with gui.add_folder("Look"):
            made["panel"] = gui.add_dropdown("show", video.PANELS, initial_value="image")
            made["levels"] = gui.add_text("levels", "", hint="such as 0-2,4; all if empty")
            made["anchors"] = gui.add_checkbox("anchors", False)
            made["colors"] = gui.add_dropdown("colours", COLORS, initial_value="own")
            made["opaque"] = gui.add_checkbox("opaque", False)
            made["scale"] = gui.add_slider("size of splats", 0.1, 3.0, 0.05, 1.0)
            made["disable_background"] = gui.add_checkbox("without background", False)
            made["background"] = gui.add_rgb("background", (255, 255, 255))
            made["client"] = gui.add_checkbox("splats in the browser", False, hint="rendered there: needs a GPU")
        for name, handle in made.items():
            if name != "said":
                handle.on_update(lambda _: self._changed())
        self._add_files()

    def _add_files(self) -> None:
        gui = self.server.gui
        with gui.add_folder("Camera"):
            gui.add_button_group("stand", tuple(YAWS)).on_click(lambda event: self._stand(event))
            record = gui.add_checkbox("record", False, hint="the camera of every picture, for gen_videos.py --path")
            record.on_update(lambda _: self.path.clear() if record.value else None)
            path = gui.add_button("save the recorded path")
        with gui.add_folder("Files"):
            picture = gui.add_button("picture")
            form = gui.add_dropdown("format", tuple(FORMATS), initial_value="ply")
            splats = gui.add_button("splats")
        self._gui["record"] = record
        path.on_click(lambda event: self._send(event, "path.json", lambda: json.dumps(self.path).encode()))
        picture.on_click(lambda event: self._send(event, "head.png", lambda: png(self._picture_of(event.client))))
        splats.on_click(lambda event: self._send(event, f"head.{form.value}", lambda: self._file(form.value)))

    def head(self) -> HeadChoice:
        """Returns the head that the controls ask for."""
        at = {name: handle.value for name, handle in self._gui.items() if hasattr(handle, "value")}
        G = self.studio.generator(at["network"])
        if at["direction"] not in (names := self.studio.direction_names(at["network"])):
            at["direction"] = names[0]  # the network has changed, and others are offered from now on
        return HeadChoice(
            at["network"], int(at["seed"]), int(at["other"]), at["mix"], at["part"] if at["part"] in _parts(G) else ALL,
            at["psi"], at["told_yaw"] if G.mapping_follows_camera else 0.0, at["direction"], at["amount"],
        )  # fmt: skip

    def shown(self) -> Shown:
        """Returns the look that the controls ask for, as far as the network has it. Raises ValueError for no levels."""
        network = self._gui["network"].value
        if self._supported[0] != network:
            self._supported = network, self.studio.supported(network)
            for name in ("levels", "anchors", "opaque", "scale", "disable_background"):
                self._gui[name].visible = name in self._supported[1]
            self._gui["colors"].visible = "color_levels" in self._supported[1]
            G = self.studio.generator(network)
            self._gui["told_yaw"].visible = G.mapping_follows_camera
            self._gui["client"].visible = G.makes_splats
            self._gui["direction"].options = self.studio.direction_names(network)
            self._gui["part"].visible, self._gui["part"].options = len(_parts(G)) > 1, _parts(G)
        has, gui = self._supported[1], self._gui
        asked: dict[str, Any] = {}
        if "levels" in has and gui["levels"].value.strip():
            asked["levels"] = tuple(dnnlib.parse_flag("levels", gui["levels"].value.strip(), dnnlib.parse_ints))
        for name in ("anchors", "opaque", "scale", "disable_background"):
            if name in has:
                asked[name] = gui[name].value
        for color in COLORS[1:]:
            asked[f"color_{color}"] = gui["colors"].value == color and f"color_{color}" in has
        red, green, blue = (value / 255 for value in gui["background"].value)
        return Shown(gui["panel"].value, (red, green, blue), Inspection(**asked))

    # ---------------------------------------------------------------- drawing

    def _connected(self, client: Any) -> None:
        self.paces[client.client_id] = Pace()
        client.camera.on_update(lambda _: self._changed(client.client_id))
        self._changed(client.client_id)

    def _left(self, client: Any) -> None:
        self.paces.pop(client.client_id, None)

    def _changed(self, client: int | None = None) -> None:
        with self._wake:
            for number, pace in self.paces.items():
                if client is None or number == client:
                    pace.change(time.monotonic())
            self._wake.notify_all()

    def _draw_until_closed(self) -> None:
        while not self._ended:
            now = time.monotonic()
            clients = self.server.get_clients()
            due = [(n, q) for n, pace in list(self.paces.items()) if (q := pace.due(now)) is not Quality.NONE]
            for number, quality in due:
                if number not in clients:
                    self.paces.pop(number, None)  # it has left
                    continue
                with self._studio_lock:
                    self._draw(clients[number], quality)
            if not due:
                with self._wake:
                    waits = [w for pace in self.paces.values() if (w := pace.wait(time.monotonic())) is not None]
                    if not self._ended and 0.0 not in waits:
                        self._wake.wait(min(waits, default=None))

    def _draw(self, client: Any, quality: Quality) -> None:
        """Draws for one viewer; what cannot be drawn is said on the page."""
        started = time.monotonic()
        try:
            if self._gui["client"].value and self.studio.generator(self._gui["network"].value).makes_splats:
                self._send_splats()
                client.scene.set_background_image(None)
            else:
                self._forget_splats()
                height = self.size.height if quality is Quality.MOVING else self.height
                picture = self._picture(client.camera, height)
                if quality is Quality.MOVING:
                    self.size.took(time.monotonic() - started)
                client.scene.set_background_image(picture, format="jpeg", jpeg_quality=JPEG[quality])
                self.pictures += 1
            said = ""
        except (CheckpointError, ValueError, OSError) as error:
            said = f"**{dnnlib.format_error(error)}**"
        if self._gui["said"].content != said:
            self._gui["said"].content = said
        self.paces.get(client.client_id, Pace()).drawn(quality, started)

    def _camera(self, seen: Any) -> Cameras:
        return viewing_camera(seen.wxyz, seen.position / ENLARGED, seen.fov, max(seen.aspect, 0.1))

    def _picture(self, seen: Any, height: int) -> np.ndarray:
        head, shown, camera = self.head(), self.shown(), self._camera(seen)
        if self._gui["record"].value:
            geometry = self.studio.generator(head.network).geometry
            label = geometry.denormalize(as_data_camera(camera, geometry.frontal())).labels
            self.path.append(label.tolist())
        return self.studio.picture(head, shown, camera, (height, max(1, round(height * max(seen.aspect, 0.1)))))

    def _picture_of(self, client: Any) -> np.ndarray:
        return self._picture(client.camera, self.height)

    def _file(self, form: str) -> bytes:
        return self.studio.file(self.head(), self.shown(), form)

    def _send_splats(self) -> None:
        head, shown = self.head(), self.shown()
        if self._splats_of == (head, shown):
            return
        one = self.studio.splats(head, shown).to("cpu")
        viewpoint = self.studio.generator(head.network).geometry.frontal().positions[None, None]
        parts = (ENLARGED * one.means, ENLARGED**2 * covariances(one.scales(), one.unit_quats()),
                 one.colors(viewpoint)[:, 0].clamp(0, 1), one.opacities())  # fmt: skip
        self.server.scene.add_gaussian_splats("/head", *(part[0].numpy() for part in parts))
        self._splats_of = head, shown

    def _forget_splats(self) -> None:
        if self._splats_of is not None:
            self.server.scene.remove_by_name("/head")
            self._splats_of = None

    def _stand(self, event: Any) -> None:
        """Moves the camera of the viewer who asks to a place on the data's orbit."""
        geometry = self.studio.generator(self._gui["network"].value).geometry
        position = geometry.orbit(math.radians(YAWS[event.target.value])).positions.numpy()
        with event.client.atomic():
            event.client.camera.position = position * ENLARGED
            event.client.camera.look_at = np.array(geometry.pivot) * ENLARGED

    def _send(self, event: Any, name: str, content: Callable[[], bytes]) -> None:
        try:
            with self._studio_lock:
                data = content()
            event.client.send_file_download(name, data, save_immediately=True)
        except ValueError as error:
            self._gui["said"].content = f"**{dnnlib.format_error(error)}**"


def _parts(G: Generator) -> tuple[str, ...]:
    """Returns what of a latent can be moved: all of it, and its named blocks if it has any."""
    return (ALL, *(G.blocks.slices if G.blocks is not None else ()))


def covariances(scales: Tensor, quats: Tensor) -> Tensor:
    """Returns R S S R^T [..., 3, 3] of splats, from standard deviations [..., 3] and unit quaternions [..., 4]."""
    axes = quats_to_matrices(quats) * scales[..., None, :]
    return axes @ axes.mT
