"""gen_videos.py: the camera of every frame, the closed loop, the file, and what bad input says."""

import math
import sys

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gen_videos import main
from training import video
from training.checkpoint import load_checkpoint, load_generator
from training.dataset import quantize

FRAMES = 8


def run(checkpoint_path, outdir, *options):
    arguments = [f"--network={checkpoint_path}", f"--outdir={outdir}", "--device=cpu", f"--w-frames={FRAMES}"]
    return CliRunner().invoke(main, [*arguments, *options])


def relative_pose(cameras, first, second):
    """[4, 4] motion from one frame's camera to another's, in the first one's own axes."""
    return torch.linalg.inv(cameras.cam2world[first].double()) @ cameras.cam2world[second].double()


def test_orbit_has_the_right_camera_in_every_frame(geometry):
    cameras = video.camera_path("orbit", geometry, FRAMES)
    yaw, pitch = cameras.yaw_pitch(geometry)
    expected = torch.arange(FRAMES) * (2 * math.pi / FRAMES)
    assert (torch.remainder(yaw - expected + 1, 2 * math.pi) - 1).abs().max() < 1e-6  # measured 2e-7
    assert pitch.abs().max() < 1e-6
    xy, _ = cameras.project(torch.tensor([geometry.pivot]).expand(FRAMES, 1, 3))
    torch.testing.assert_close(xy, torch.full_like(xy, 0.5), rtol=0, atol=1e-6)


def test_orbit_closes(geometry):
    """About a pivot on the axis, the step from the last frame to the first is the step between any two."""
    geometry = type(geometry).from_dict({**geometry.to_dict(), "pivot": [0.0, 0.0, 0.0]})
    cameras = video.camera_path("orbit", geometry, FRAMES)
    closing = relative_pose(cameras, FRAMES - 1, 0)
    for k in range(FRAMES - 1):
        torch.testing.assert_close(relative_pose(cameras, k, k + 1), closing, rtol=0, atol=2e-6)  # measured 5e-7
    still = relative_pose(cameras, 0, 0)
    assert (closing - still).abs().max() > 0.1


def test_front_swings_as_far_as_the_data_and_closes(geometry, checkpoint_path):
    low, high = video.yaw_range(load_checkpoint(checkpoint_path))
    assert (low, high) == pytest.approx((-0.6, 0.5), abs=1e-5)
    cameras = video.camera_path("front", geometry, 400, max_yaw=0.6)
    yaw, _ = cameras.yaw_pitch(geometry)
    assert yaw.abs().max() == pytest.approx(0.6, abs=1e-3)
    steps = (yaw.roll(-1) - yaw).abs()
    assert steps[-1] <= steps.max() < 0.02


def test_unknown_path_and_no_frames_are_refused(geometry):
    with pytest.raises(ValueError, match=r"'circle'.*orbit, front"):
        video.camera_path("circle", geometry, 3)
    with pytest.raises(ValueError, match="at least 1 frame"):
        video.camera_path("orbit", geometry, 0)


def test_frames_are_the_generators_own_pictures(checkpoint_path, monkeypatch):
    """Batches over views, which do not divide the number of frames, change nothing; cells follow the seeds' order."""
    G = load_generator(checkpoint_path)
    ws = G.mapping(video.seed_latents([3, 4], G.z_dim))
    cameras = video.camera_path("orbit", G.geometry, 5)
    monkeypatch.setattr(video, "PIXELS_PER_CALL", 2 * 2 * 16**2)
    frames = list(video.render_frames(G, ws, cameras, columns=2, resolution=16))
    assert len(frames) == 5
    for k, frame in enumerate(frames):
        image = quantize(G.render(G.synthesis(ws), cameras[k].reshape(1, 1).expand(2, 1), 16).image)[:, 0]
        expected = torch.cat([image[0], image[1]], dim=2).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(frame, expected)
    assert any((frame[:, :16] != frame[:, 16:]).any() for frame in frames)


def test_script_writes_a_film(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=0-2", "--grid=3x1", "--resolution=33", "--fps=10", "--trunc=0.7")
    assert result.exit_code == 0, result.output
    film = tmp_path / "network-snapshot-000000-orbit.mp4"
    assert result.stdout.strip() == str(film)
    assert list(tmp_path.iterdir()) == [film]
    reader = imageio_ffmpeg.read_frames(str(film))
    meta = next(reader)
    frames = [np.frombuffer(raw, np.uint8).reshape(34, 100, 3) for raw in reader]
    assert (meta["size"], meta["fps"], len(frames)) == ((100, 34), 10.0, FRAMES)
    G = load_generator(checkpoint_path)
    ws = G.mapping(video.seed_latents([0, 1, 2], G.z_dim), psi=0.7)
    expected = video.render_frames(G, ws, video.camera_path("orbit", G.geometry, FRAMES), 3, 33)
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


def test_a_film_that_breaks_off_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), video.VideoWriter(tmp_path / "film.mp4", fps=30) as film:
        film.write(np.zeros((32, 32, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds=0-3", "--grid=3x1"], "--grid=3x1 has 3 cells, --seeds=0-3 names 4 heads"),
        (["--seeds=x"], "'x' is not a list of whole numbers"),
        (["--grid=2"], "'2' is not a grid"),
        (["--network=nowhere.pkl"], "nowhere.pkl: no such checkpoint"),
        (["--path=circle"], "'circle' is not one of 'orbit', 'front'"),
        (["--outdir=/dev/null/x"], "/dev/null"),
    ],
)
def test_bad_input_is_one_clear_line(checkpoint_path, tmp_path, options, message):
    result = run(checkpoint_path, tmp_path, *options)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert result.output.strip().splitlines()[-1].startswith("Error:")
