"""Tests gen_videos.py: the camera of every frame, the closed loop, the panels and the file."""

import json
import math
import sys

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import gen_videos
from gen_videos import main
from tests.training.visualization import toys
from training.checkpoint import load_generator
from training.families import FAMILIES
from training.images import quantize
from training.visualization import latents, video
from training.visualization.camera_paths import PATHS, camera_path, read_cameras, write_cameras
from training.visualization.latents import interpolate, save_ws, seed_latents, straight

FRAMES = 8


def run(checkpoint_path, outdir, *options):
    arguments = [f"--network={checkpoint_path}", f"--outdir={outdir}", "--device=cpu", f"--w-frames={FRAMES}"]
    return CliRunner().invoke(main, [*arguments, *options])


def relative_pose(cameras, first, second):
    """Returns the motion [4, 4] from one frame's camera to another's, in the first one's own axes."""
    return torch.linalg.inv(cameras.cam2world[first].double()) @ cameras.cam2world[second].double()


def film_frames(path, height, width):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    return meta, [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]


@pytest.mark.parametrize("k", range(FRAMES))
def test_front_is_the_published_ellipse(geometry, k):
    """Rebuilds frame k by the formulas of EG3D's sampler in its own axes and its own way, in NumPy."""
    t = k / FRAMES
    h, v = np.pi / 2 + 0.35 * np.sin(2 * np.pi * t), np.pi / 2 - 0.05 + 0.25 * np.cos(2 * np.pi * t)
    phi = np.arccos(1 - 2 * v / np.pi)
    position = geometry.radius * np.array(
        [np.sin(phi) * np.cos(np.pi - h), np.cos(phi), np.sin(phi) * np.sin(np.pi - h)]
    )
    position += geometry.centre
    forward = np.array(geometry.pivot) - position
    forward /= np.linalg.norm(forward)
    right = -np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    expected = np.eye(4)
    expected[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=1)
    camera = camera_path("front", geometry, FRAMES)[k]
    np.testing.assert_allclose(camera.cam2world.numpy(), expected, rtol=0, atol=1e-6)  # measured 2e-7
    np.testing.assert_allclose(camera.intrinsics.numpy(), geometry.intrinsics)


def test_orbit_has_the_right_camera_in_every_frame(geometry):
    cameras = camera_path("orbit", geometry, FRAMES)
    yaw, pitch = cameras.yaw_pitch(geometry)
    expected = torch.arange(FRAMES) * (2 * math.pi / FRAMES)
    assert (torch.remainder(yaw - expected + 1, 2 * math.pi) - 1).abs().max() < 1e-6  # measured 2e-7
    assert pitch.abs().max() < 1e-6
    xy, _ = cameras.project(torch.tensor([geometry.pivot]).expand(FRAMES, 1, 3))
    torch.testing.assert_close(xy, torch.full_like(xy, 0.5), rtol=0, atol=1e-6)


def test_wiggle_swings_as_far_as_the_data(geometry, checkpoint_path):
    limits = load_generator(checkpoint_path).info.yaw_limits
    assert limits == pytest.approx((-0.6, 0.5), abs=1e-5)
    yaw, pitch = camera_path("wiggle", geometry, 400, limits).yaw_pitch(geometry)
    assert (yaw.min().item(), yaw.max().item()) == pytest.approx(limits, abs=1e-4)
    assert pitch.abs().max() < 1e-6


@pytest.mark.parametrize("k", range(FRAMES))
def test_circle_is_the_published_one(geometry, k):
    """For data 2.7 from the origin, frame k stands at (-0.6 sin, 0.6 cos, 2.7) and looks at the pivot, y up."""
    camera = camera_path("circle", geometry, FRAMES)[k]
    t = 2 * np.pi * k / FRAMES
    place = np.array([-0.6 * np.sin(t), 0.6 * np.cos(t), 2.7])
    np.testing.assert_allclose(camera.positions.numpy(), place, rtol=0, atol=1e-6)
    forward = np.array(geometry.pivot) - place
    np.testing.assert_allclose(camera.cam2world[:3, 2].numpy(), forward / np.linalg.norm(forward), rtol=0, atol=1e-6)
    assert abs(camera.cam2world[1, 0]) < 1e-6 and camera.cam2world[1, 1] < 0  # no roll, image y down


@pytest.mark.parametrize("kind", PATHS)
def test_turns_go_round_the_path(geometry, kind):
    twice, once = camera_path(kind, geometry, 12, turns=2), camera_path(kind, geometry, 6)
    for half in (twice[:6], twice[6:]):
        torch.testing.assert_close(half.cam2world, once.cam2world, rtol=0, atol=1e-6)


def test_orbit_closes(geometry):
    """Compares the step from the last frame to the first with every other, about a pivot on the axis."""
    geometry = type(geometry).from_dict({**geometry.to_dict(), "pivot": [0.0, 0.0, 0.0]})
    cameras = camera_path("orbit", geometry, FRAMES)
    closing = relative_pose(cameras, FRAMES - 1, 0)
    for k in range(FRAMES - 1):
        torch.testing.assert_close(relative_pose(cameras, k, k + 1), closing, rtol=0, atol=2e-6)  # measured 5e-7
    still = relative_pose(cameras, 0, 0)
    assert (closing - still).abs().max() > 0.1


@pytest.mark.parametrize("kind", PATHS)
def test_paths_close(geometry, kind):
    """Checks that the step over the seam is no larger than those that the film takes elsewhere."""
    cameras = camera_path(kind, geometry, 200)
    steps = (cameras.positions.roll(-1, 0) - cameras.positions).norm(dim=-1)
    assert steps[-1] <= 1.001 * steps[:-1].max()
    assert steps.max() < 0.1 * geometry.radius


def test_unknown_path_and_no_frames_are_refused(geometry):
    with pytest.raises(ValueError, match=r"'square'.*front, circle, orbit, wiggle"):
        camera_path("square", geometry, 3)
    with pytest.raises(ValueError, match="at least 1 frame"):
        camera_path("orbit", geometry, 0)


@pytest.mark.parametrize("named", [False, True])
def test_cameras_from_a_file(geometry, tmp_path, named):
    """Reads labels in the data's own units, bare or as dataset.json has them, as the model's cameras."""
    scaled = type(geometry)(**{**vars(geometry), "world_scale": 3.0, "origin": (1.0, -2.0, 0.5)})
    wanted = scaled.orbit(torch.linspace(-0.4, 0.4, 5), 0.1)
    file = tmp_path / "path.json"
    write_cameras(file, wanted, scaled)
    if named:
        file.write_text(json.dumps({"labels": [[f"{i}.png", x] for i, x in enumerate(json.loads(file.read_text()))]}))
    cameras = read_cameras(file, scaled)
    assert cameras.shape == (5,)
    torch.testing.assert_close(cameras.labels, wanted.labels, rtol=0, atol=2e-6)  # measured 4e-7


def test_interpolation_passes_through_the_heads_and_closes():
    keys = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = interpolate(keys, 300)
    assert path.shape == (300, 1, 4)
    torch.testing.assert_close(path[::100], keys, rtol=0, atol=1e-12)
    around = torch.cat([path, path, path[:1]])
    bend = around.diff(dim=0).diff(dim=0).abs().max()
    assert bend < 0.002  # measured 0.0010, at the seam too; a path that does not close smoothly bends by 0.02
    torch.testing.assert_close(interpolate(keys[:1], 4), keys[:1].expand(4, 1, 4))


def test_straight_lines_pass_through_the_heads():
    keys = torch.tensor([[0.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    path = straight(keys, 6)
    torch.testing.assert_close(path[:, 0], torch.tensor([0.0, 1, 2, 3, 2, 1], dtype=torch.float64))
    torch.testing.assert_close(path[[0, 3]], keys)
    odd = straight(keys, 5)  # the second head is reached between two frames
    torch.testing.assert_close(odd[:, 0], torch.tensor([0, 1.2, 2.4, 2.4, 1.2], dtype=torch.float64))


@pytest.mark.parametrize("told", [False, True])
def test_heads_change_straight_through_z(toy, geometry, monkeypatch, told):
    """Frame by frame by hand, with calls of the mapping that do not divide the frames."""
    monkeypatch.setattr(latents, "MAPPED_AT_ONCE", 2 * 3)
    z = seed_latents([0, 1, 2, 3], toy.z_dim)
    cameras = camera_path("orbit", geometry, 8)
    ws = latents.film_ws(toy, latents.Heads(list("abcd"), z=z, psi=0.5), 2, 8, "z", cameras if told else None)
    assert ws.shape == (8, 2, toy.num_ws, toy.w_dim)
    assert [len(c) for c in toy.told] == [6, 6, 4]
    frame = torch.stack([torch.lerp(z[0], z[1], 0.5), torch.lerp(z[2], z[3], 0.5)])
    asked = cameras[2].reshape(1).expand(2) if told else geometry.frontal().expand(2)
    torch.testing.assert_close(ws[2], toy.mapping(frame, asked, 0.5))
    seen = torch.cat([c.labels for c in toy.told[:-1]])
    expected = cameras.labels if told else geometry.frontal().labels.expand(8, -1)
    torch.testing.assert_close(seen, expected.repeat_interleave(2, dim=0), rtol=0, atol=0)


def test_heads_told_each_frames_camera_lie_on_the_curve_of_heads_told_it(toy, geometry, monkeypatch):
    """In frame f: the spline through what the heads are under f's camera."""
    monkeypatch.setattr(latents, "MAPPED_AT_ONCE", 7)
    monkeypatch.setattr(
        type(toy),
        "mapping",
        lambda self, z, cameras=None, psi=1.0: (
            (psi * z[:, None, :3]).expand(-1, 2, -1) * (1 + cameras.positions[:, None, :1])
        ),
    )
    z, cameras = seed_latents([0, 1, 2], toy.z_dim), camera_path("orbit", geometry, 6)
    ws = latents.film_ws(toy, latents.Heads(list("abc"), z=z), 1, 6, "w", cameras)
    for f in range(6):
        keys = toy.mapping(z, cameras[f].reshape(1).expand(3))
        torch.testing.assert_close(ws[f, 0], interpolate(keys, 6)[f], rtol=0, atol=1e-5)
    alone = latents.film_ws(toy, latents.Heads(["a"], z=z[:1]), 1, 6, "w", cameras)  # one head, told six cameras
    torch.testing.assert_close(alone[:, 0], toy.mapping(z[:1].expand(6, -1), cameras))


def test_a_film_of_each_head(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=3,7", "--interpolate=none", "--path=circle", "--turns=2")
    assert result.exit_code == 0, result.output
    films = [tmp_path / f"network-snapshot-000000-circle-seed{seed:04d}.mp4" for seed in (3, 7)]
    assert result.stdout.split() == [str(film) for film in films]
    first, second = (film_frames(film, 32, 32)[1] for film in films)
    assert len(first) == len(second) == FRAMES
    assert np.abs(first[0].astype(int) - second[0]).max() > 20
    assert np.abs(first[0].astype(int) - first[FRAMES // 2]).mean() < 3  # the second turn, of lossy colours
    assert run(checkpoint_path, tmp_path, "--seeds=3", "--grid=2x1", "--interpolate=none").exit_code == 1


def test_a_mapping_that_is_told_no_camera_is_told_none_of_the_film(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=3", "--mapping-camera=film")
    assert (
        result.exit_code == 1
        and "--mapping-camera=film: the mapping of this network is told no camera" in result.output
    )


def test_frames_are_the_generators_own_pictures(checkpoint_path, monkeypatch):
    """Checks that batches over views, which do not divide the frames, change nothing, and the order of the cells."""
    G = load_generator(checkpoint_path)
    ws = G.mapping(seed_latents([3, 4], G.z_dim))
    cameras = camera_path("orbit", G.geometry, 5)
    monkeypatch.setattr(video, "PIXELS_PER_CALL", 2 * 2 * 16**2)
    frames = list(video.render_frames(G, ws, cameras, 2, video.Look(resolution=16)))
    assert len(frames) == 5
    for k, frame in enumerate(frames):
        image = quantize(G.render(G.synthesis(ws), cameras[k].reshape(1, 1).expand(2, 1), 16).image)[:, 0]
        expected = torch.cat([image[0], image[1]], dim=2).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(frame, expected)
    assert any((frame[:, :16] != frame[:, 16:]).any() for frame in frames)


def test_changing_heads_have_their_own_scene_in_every_frame(checkpoint_path, monkeypatch):
    G = load_generator(checkpoint_path)
    keys = G.mapping(seed_latents([0, 1, 2, 3], G.z_dim))
    ws = interpolate(keys.unflatten(0, (2, 2)).transpose(0, 1), 4)  # [F, 2 cells, num_ws, w_dim]
    torch.testing.assert_close(ws[0], keys[[0, 2]])
    torch.testing.assert_close(ws[2], keys[[1, 3]])
    cameras = camera_path("front", G.geometry, 4)
    monkeypatch.setattr(video, "PIXELS_PER_CALL", 3 * 2 * 32**2)
    look = video.Look(background=(0.0, 0.0, 1.0))
    frames = list(video.render_frames(G, ws, cameras, 1, look))
    for k, frame in enumerate(frames):
        expected = next(video.render_frames(G, ws[k], cameras[k : k + 1], 1, look))
        assert np.abs(frame.astype(int) - expected).max() <= 1  # batched products round differently
    assert (frames[0] != frames[2]).any() and len(frames) == 4
    assert frames[0][0, 0].tolist() == [0, 0, 255]  # the corner shows the background


def test_panels_stand_side_by_side(checkpoint_path):
    G = load_generator(checkpoint_path)
    scene = G.synthesis(G.mapping(seed_latents([0], G.z_dim)))
    camera = G.geometry.frontal().reshape(1, 1)
    both = video.render_panels(G, scene, camera, video.Look(show=("alpha", "normals", "image", "depth")))
    assert both.shape == (1, 1, 3, 32, 4 * 32)
    out = G.render(scene, camera)
    torch.testing.assert_close(both[..., 64:96], quantize(out.image))
    torch.testing.assert_close(both[..., :32], quantize(2 * out.alpha - 1).expand(-1, -1, 3, -1, -1))
    outside = out.alpha[0, 0, 0] <= 0.5
    assert (both[0, 0, :, :, 32:64][:, outside] == 255).all() and (both[0, 0, :, :, 96:][:, outside] == 255).all()


def test_script_writes_a_film(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=0-2", "--grid=3x1", "--resolution=33", "--fps=10", "--trunc=0.7")
    assert result.exit_code == 0, result.output
    film = tmp_path / "network-snapshot-000000-orbit.mp4"
    assert result.stdout.strip() == str(film)
    assert list(tmp_path.iterdir()) == [film]
    meta, frames = film_frames(film, 34, 100)
    assert (meta["size"], meta["fps"], len(frames)) == ((100, 34), 10.0, FRAMES)
    G = load_generator(checkpoint_path)
    ws = G.mapping(seed_latents([0, 1, 2], G.z_dim), psi=0.7)
    cameras = camera_path("orbit", G.geometry, FRAMES)
    expected = video.render_frames(G, ws, cameras, 3, video.Look(resolution=33))
    errors = [np.abs(f[:33, :99].astype(int) - e).mean() for f, e in zip(frames, expected, strict=True)]
    assert max(errors) < 6  # of 255, lossy colours of a noisy picture


def test_png_frames_without_ffmpeg(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    stale = tmp_path / "network-snapshot-000000-front" / "frame00099.png"
    stale.parent.mkdir()
    stale.touch()
    result = run(checkpoint_path, tmp_path, "--seeds=0", "--path=front", "--enlarge=2")
    assert result.exit_code == 0, result.output
    assert "No ffmpeg was found" in result.output
    frames = sorted(stale.parent.iterdir())
    assert [f.name for f in frames] == [f"frame{k:05d}.png" for k in range(FRAMES)]
    assert Image.open(frames[0]).size == (64, 64)


def test_heads_change_through_a_cell_and_panels_widen_it(checkpoint_path, tmp_path):
    result = run(
        checkpoint_path,
        tmp_path,
        "--seeds=0-3",
        "--grid=1x2",
        "--show=image,depth",
        "--path=wiggle",
        "--background=black",
    )
    assert result.exit_code == 0, result.output
    _, frames = film_frames(tmp_path / "network-snapshot-000000-wiggle.mp4", 64, 64)
    assert len(frames) == 2 * FRAMES  # two heads a cell
    assert frames[0][0, 0].max() < 30


def test_a_camera_file_sets_the_frames(checkpoint_path, geometry, tmp_path):
    write_cameras(tmp_path / "mine.json", camera_path("wiggle", geometry, 3), geometry)
    arguments = [f"--network={checkpoint_path}", f"--outdir={tmp_path}", f"--path={tmp_path / 'mine.json'}"]
    result = CliRunner().invoke(main, [*arguments, "--seeds=0"])
    assert result.exit_code == 0, result.output
    assert len(film_frames(tmp_path / "network-snapshot-000000-mine.mp4", 32, 32)[1]) == 3
    assert "--w-frames means nothing" in CliRunner().invoke(main, [*arguments, "--w-frames=5"]).output


def test_a_file_of_ws_films_the_same_heads(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    G = load_generator(checkpoint_path)
    save_ws(tmp_path / "heads.npz", G.mapping(seed_latents([5], G.z_dim), psi=0.4))
    assert run(checkpoint_path, tmp_path / "a", "--seeds=5", "--trunc=0.4").exit_code == 0
    result = run(checkpoint_path, tmp_path / "b", f"--w-file={tmp_path / 'heads.npz'}")
    assert result.exit_code == 0, result.output
    first, second = (np.asarray(Image.open(next((tmp_path / x).rglob("frame00003.png")))) for x in "ab")
    np.testing.assert_array_equal(first, second)


def test_a_film_that_breaks_off_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), video.VideoWriter(tmp_path / "film.mp4", fps=30) as film:
        film.write(np.zeros((32, 32, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_the_writing_thread_is_raised(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("ffmpeg is gone")

    monkeypatch.setattr(video, "_open_ffmpeg", broken)
    with pytest.raises(OSError, match="ffmpeg is gone"), video.VideoWriter(tmp_path / "film.mp4", fps=30) as film:
        film.write(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(OSError, match="ffmpeg is gone"), video.VideoWriter(tmp_path / "film.mp4", fps=30) as film:
        for _ in range(video.FRAMES_WAITING + 1):
            film.write(np.zeros((32, 32, 3), np.uint8))
        raise AssertionError("goes on without a writer")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def toy(monkeypatch, geometry):
    """Lets the script load a network of a family of its own, whose scenes are no splats."""
    monkeypatch.setitem(FAMILIES, toys.NAME, toys.FAMILY)
    G = toys.FogGenerator(geometry)
    monkeypatch.setattr(gen_videos, "load_generator", lambda path, device: G)
    return G


def test_any_family_is_filmed_and_its_mapping_is_told_the_frontal_camera(toy, geometry, tmp_path):
    result = run("net.pkl", tmp_path, "--seeds=0-1", "--grid=2x1", "--path=wiggle", "--show=image,depth")
    assert result.exit_code == 0, result.output
    _, frames = film_frames(tmp_path / "net-wiggle.mp4", 8, 32)
    assert len(frames) == FRAMES
    (told,) = toy.told
    torch.testing.assert_close(told.labels, geometry.frontal().labels.expand(2, -1), rtol=0, atol=0)
    w = toy.mapping(seed_latents([0, 1], toy.z_dim), told, psi=0.7)[:, 0]
    assert np.abs(frames[0][4, 4] / 255 - w[0].numpy()).max() < 0.1  # of lossy colours


@pytest.mark.parametrize(
    "option",
    [
        "--levels=0",
        "--anchors",
        "--point=1",
        "--nearest=1",
        "--opaque",
        "--disable-background",
        "--color-levels",
        "--color-points",
        "--colors-from=0",
    ],
)
def test_what_the_family_cannot_show_is_refused_by_name(toy, tmp_path, option):
    result = run("net.pkl", tmp_path, "--seeds=0", option)
    assert result.exit_code == 1
    assert result.output.count("\n") == 1 and f"{option.split('=')[0]}: the scenes of this network" in result.output


def test_scenes_that_change_are_synthesised_by_their_size(toy, geometry, monkeypatch):
    monkeypatch.setattr(video, "NUMBERS_PER_CALL", 2 * 3 * toy.scene_numbers)  # 3 frames of 2 heads
    keys = toy.mapping(seed_latents([0, 1, 2, 3], toy.z_dim), geometry.frontal().expand(4))
    ws = interpolate(keys.unflatten(0, (2, 2)).transpose(0, 1), 7)
    assert len(list(video.render_frames(toy, ws, camera_path("orbit", geometry, 7), 2))) == 7
    assert toy.batches == [6, 6, 2]


def test_the_background_is_the_trainings_unless_another_is_asked_for(toy):
    assert video.shown_background(toy, None) == (0.0, 0.0, 1.0)
    assert video.shown_background(toy, "black") == (0.0, 0.0, 0.0)
    toy.info = None
    with pytest.raises(ValueError, match="comes from no checkpoint"):
        video.shown_background(toy, None)


def test_the_checkpoint_is_read_once(checkpoint_path, tmp_path, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path) or load(path, **options))
    assert run(checkpoint_path, tmp_path, "--seeds=0", "--path=wiggle").exit_code == 0
    assert len(read) == 1
