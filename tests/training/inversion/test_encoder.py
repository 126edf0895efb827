"""Tests encoders of a network's own heads: what they tell, what does not matter to them, and their files."""

import dataclasses

import pytest
import torch

from gaussian import Cameras
from tests.training.inversion.heads import write_network
from training.checkpoint import load_generator
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import ImageDataset
from training.inversion import diagnosis, encoder_training, inversion
from training.inversion.cameras import Tracker, angle_between
from training.inversion.diagnosis import diagnose
from training.inversion.encoder import read_encoder, save_encoder
from training.inversion.encoder_training import changed, draw_samples, encoder_config, moved, train_encoder
from training.inversion.fitting import Target
from training.inversion.inversion import NoHeadError, Settings, invert
from training.inversion.latents import measure_latents

WHITE = (1.0, 1.0, 1.0)
SHORT = Settings(heads=2, starts=1, latent_steps=4, block_steps=0, tuning_steps=0, splat_steps=0)


@pytest.fixture(scope="module")
def G(tmp_path_factory, geometry):
    return load_generator(write_network(tmp_path_factory.mktemp("network"), geometry))


@pytest.fixture(scope="module")
def space(G):
    return measure_latents(G)


@pytest.fixture(scope="module")
def config(G, space):
    return dataclasses.replace(encoder_config(G, space, WHITE, 120), heads=96, width=8)


@pytest.fixture(scope="module")
def encoder(G, space, config):
    return train_encoder(G, space, config, lambda *_: None)


def picture(G, space, yaw, background=1.0):
    """A head of the network, and its mask, from one side."""
    camera = G.geometry.orbit(torch.tensor([yaw]))
    with torch.no_grad():
        out = G.render(G.synthesis(space.ws(torch.zeros(1, 1, len(space.axes)))), camera.reshape(1, 1),
                       background=torch.full((3,), background))  # fmt: skip
    return Target(out.rgb[0].clamp(0, 1), out.alpha[0], torch.full((3,), background)), camera


def test_angles_of_heads_that_it_never_saw(G, space, config, encoder):
    low, high = config.yaw_limits
    reach = encoder_training.YAW_REACH * (high - low) / 2
    assert encoder.errors["yaw"] < 0.5 * reach / 3**0.5  # of whoever always says the middle, the second factor
    assert encoder.errors == encoder_training.measured_errors(encoder, G, space)
    for yaw in (-0.4, 0.4):
        target, truth = picture(G, space, yaw)
        guess = encoder.guess(target, G.geometry)
        assert float(angle_between(truth, guess.cameras, G.geometry)) < 15
        assert guess.coordinates.shape == (len(space.axes),)
        assert guess.doubts == (encoder.errors["pitch"], encoder.errors["yaw"])


def test_a_training_is_a_function_of_its_input(G, space, config, encoder):
    short = dataclasses.replace(config, heads=16, steps=3)
    first, second = (train_encoder(G, space, short, lambda *_: None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return ImageDataset(synthesize_heads(tmp_path_factory.mktemp("heads") / "set", 96, 32, seed=0, workers=1).images)


def test_labelled_pictures_are_read_as_the_network_saw_them(G, config, labelled, monkeypatch):
    monkeypatch.setattr(encoder_training, "LEAST_PICTURES", 32)
    black = dataclasses.replace(config, background=(0.0, 0.0, 0.0))
    samples = encoder_training.read_pictures(labelled, black, G.geometry)
    assert samples.images.shape == (96, 3, 32, 32) and samples.coordinates.shape == (96, 0)
    outside = labelled.load(range(96)).masks == 0
    assert outside.any() and not samples.images[outside.expand(-1, 3, -1, -1)].any()
    cameras = Cameras.from_labels(torch.from_numpy(labelled.labels))
    orbit = G.geometry.orbit(*samples.angles.double().unbind(1))
    assert float(angle_between(orbit.to(dtype=torch.float32), cameras, G.geometry).max()) < 0.1
    monkeypatch.setattr(encoder_training, "LEAST_PICTURES", 97)
    with pytest.raises(ValueError, match="has 96 pictures; an encoder needs at least 97"):
        encoder_training.read_pictures(labelled, config, G.geometry)


def test_labelled_pictures_teach_the_cameras_of_real_heads(G, space, config, encoder, labelled, monkeypatch):
    monkeypatch.setattr(encoder_training, "LEAST_PICTURES", 32)
    monkeypatch.setattr(encoder_training, "CHECKED", 16)
    pictures = encoder_training.read_pictures(labelled, config, G.geometry)
    taught = train_encoder(G, space, config, lambda *_: None, pictures)
    untaught = encoder_training.measured_errors(encoder, G, space, pictures[-16:])
    assert taught.errors["yaw"] < 0.6 * untaught["yaw"]
    assert taught.errors == encoder_training.measured_errors(taught, G, space, pictures[-16:])


def test_a_sample_is_a_function_of_its_number(G, space, config):
    some, others = (draw_samples(G, space, config, r, lambda *_: None) for r in (range(4), range(2, 6)))
    assert torch.equal(some.angles[4:], others.angles[:4])
    assert (some.images[4:].int() - others.images[:4].int()).abs().max() <= 1
    torch.testing.assert_close(some.coordinates[4:], others.coordinates[:4], rtol=1e-3, atol=1e-3)


def test_pictures_are_moved_as_far_as_is_said():
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 14:18, 14:18] = 1
    one, zero = torch.ones(1), torch.zeros(1)
    torch.testing.assert_close(moved(image, zero, one, torch.zeros(1, 2)), image)
    right = moved(image, zero, one, torch.tensor([[-0.25, 0.0]]))  # a quarter of half a picture: 4 px
    torch.testing.assert_close(right, image.roll(4, dims=3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        moved(image, torch.tensor([torch.pi / 2]), one, torch.zeros(1, 2)), image, atol=1e-4, rtol=0
    )
    assert moved(image, zero, torch.tensor([2.0]), torch.zeros(1, 2)).sum() == pytest.approx(
        float(image.sum()) / 4, rel=0.3
    )


def test_changes_differ_from_picture_to_picture_and_step_to_step(config):
    images = torch.full((4, 3, 32, 32), 0.5)
    first, again, next_one = changed(images, config, 0), changed(images, config, 0), changed(images, config, 1)
    assert torch.equal(first, again) and not torch.equal(first, next_one)
    assert not torch.equal(first[0], first[1]) and first.min() >= 0 and first.max() <= 1


def test_backgrounds_of_masked_pictures_do_not_matter(G, space, encoder):
    (white, _), (black, _) = (picture(G, space, 0.3, background) for background in (1.0, 0.0))
    one, other = encoder.guess(white, G.geometry), encoder.guess(black, G.geometry)
    torch.testing.assert_close(one.cameras.labels, other.cameras.labels, atol=1e-3, rtol=0)


def test_an_inversion_begins_there_and_is_held(G, space, encoder):
    target, _ = picture(G, space, 0.3)
    guess, steps = encoder.guess(target, G.geometry), []
    found = invert(G, None, target, None, SHORT, encoder=encoder, report=lambda _, n: steps.append(n))
    torch.testing.assert_close(found.cameras.labels, guess.cameras.labels)
    assert float(found.motion.abs().max()) > 0  # that it would make if it might
    assert sum(steps) == SHORT.steps(G, encoded=True)
    (said,) = [finding for finding in diagnose(found, None) if finding.what == "camera"]
    assert said.good and said.text.startswith("held where the encoder saw it, which errs by ")
    far = dataclasses.replace(found, motion=torch.full_like(found.motion, 0.9))
    assert [finding.good for finding in diagnose(far, None) if finding.what == "camera"] == [False]


def test_another_crop_is_noticed_although_the_camera_is_held(G, space, encoder, monkeypatch):
    monkeypatch.setattr(diagnosis, "OFF_CROP", 0.03)
    target, truth = picture(G, space, 0.3)
    sure = dataclasses.replace(encoder.guess(target, G.geometry), cameras=truth, doubts=(0.03, 0.03))
    monkeypatch.setattr(encoder, "guess", lambda *_: sure)
    moved_by = [x.roll(2, dims=3) for x in (target.images, target.masks)]  # of 32 px
    for seen, good in ((target, True), (Target(*moved_by, target.background), False)):
        found = invert(G, None, seen, None, SHORT, encoder=encoder)
        (crop,) = [finding for finding in diagnose(found, None) if finding.what == "crop"]
        assert crop.good is good, crop.text


def test_cameras_that_are_given_are_held_with_an_encoder_as_well(G, space, encoder):
    target, truth = picture(G, space, 0.3)
    found = invert(G, None, target, truth, SHORT, encoder=encoder)
    torch.testing.assert_close(found.cameras.labels, truth.labels)
    assert found.doubts is None and found.strayed is not None


def test_a_camera_that_is_nearly_known_moves_less(G, space):
    target, _ = picture(G, space, 0.3)
    wrong = G.geometry.orbit(torch.tensor([0.4])).reshape(1, 1)
    scene = G.synthesis(space.ws(torch.zeros(1, 1, len(space.axes))))

    def yaw(doubts):
        tracker = Tracker.at(wrong, G.geometry, doubts)
        for _ in range(6):
            tracker = tracker.step(lambda c: G.render(scene, c, 32, torch.ones(3)).rgb, target.images)
        return abs(float(tracker.motion[0, 0, 1]))

    assert yaw((1e-3, 1e-3)) < 0.01 < 0.05 < yaw((1.0, 1.0))


def test_files_come_back_and_others_are_refused(encoder, config, tmp_path):
    save_encoder(tmp_path / "encoder.pt", encoder)
    back = read_encoder(tmp_path / "encoder.pt", config.network)
    assert back.config == config and back.errors == encoder.errors
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), encoder.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.pt"]
    with pytest.raises(ValueError, match="is the encoder of another network"):
        read_encoder(tmp_path / "encoder.pt", "0" * 16)
    torch.save({"config": {"network": config.network}}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="not an encoder as --train-encoder writes it"):
        read_encoder(tmp_path / "part.pt", config.network)
    (tmp_path / "words.pt").write_text("words")
    with pytest.raises(ValueError, match="not an encoder as --train-encoder writes it"):
        read_encoder(tmp_path / "words.pt", config.network)


def test_where_it_leads_to_no_head_cameras_are_tried(G, space, encoder, monkeypatch):
    """It sees the head from behind, and is sure of that."""
    target, truth = picture(G, space, 0.3)
    guess = encoder.guess(target, G.geometry)
    behind = G.geometry.orbit(torch.tensor([2.5]))
    astray = dataclasses.replace(guess, cameras=behind, doubts=(1e-4, 1e-4))
    monkeypatch.setattr(encoder, "guess", lambda *_: astray)
    monkeypatch.setattr(inversion, "LEAST_EXPLAINED", 0.8)
    found = invert(G, None, target, None, SHORT, encoder=encoder)
    assert found.misled and found.doubts is None
    assert float(angle_between(found.cameras, truth, G.geometry)) < 25
    assert [stage.name for stage in found.stages].count("search") == 1
    assert diagnose(found, None)[1].what == "encoder"
    with pytest.raises(NoHeadError):
        invert(G, None, target, astray.cameras, SHORT, encoder=encoder)
