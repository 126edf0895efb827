"""The discriminator: structure, minibatch-std groups, precision rule, R1."""

import dataclasses

import pytest
import torch
from torch import Tensor

from training.networks.base import Conditioning
from training.networks.discriminator import Discriminator, DiscriminatorConfig, minibatch_std

TINY = DiscriminatorConfig(resolution=16, channels=(8, 12, 16), embedding_dim=20, mapping_depth=2, published_keys=False)
TINY_PUBLISHED = DiscriminatorConfig(
    resolution=16, channels=(8, 12, 16), embedding_dim=20, mapping_depth=2, conv_clamp=256.0
)


def network(config: DiscriminatorConfig = TINY, dtype: torch.dtype = torch.float32) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(config).to(dtype)


def batch(count: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 16, dtype=dtype, generator=generator) * 2 - 1
    return images, torch.randn(count, 25, dtype=dtype, generator=generator)


def r1(D: Discriminator, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(D(images, labels).sum(), images, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize(
    ("resolution", "keys", "parameters"),
    [(256, 91, 36_222_592), (512, 100, 36_341_312), (1024, 109, 36_370_976), (2048, 118, 36_378_384)],
)
def test_published_members_have_the_published_sizes(resolution, keys, parameters):
    with torch.device("meta"):
        D = Discriminator(DiscriminatorConfig.published(resolution))
        size = (4, 3, resolution, resolution)
        assert D(torch.empty(size), torch.empty(4, 25)).shape == (4, 1)
    assert len(D.state_dict()) == keys
    assert sum(p.numel() for p in D.parameters()) == parameters


def test_channels_are_changed_by_base_and_maximum():
    config = DiscriminatorConfig.published(512)
    assert (config.channel_base, config.channel_max) == (32768, 512)
    assert config.changed(channel_base=32768) == config == config.changed(channel_max=512)
    small = config.changed(channel_base=4096)
    assert small.channels == (8, 16, 32, 64, 128, 256, 512, 512) and small.embedding_dim == 512
    narrow = small.changed(channel_max=100)
    assert narrow.channels == (8, 16, 32, 64, 100, 100, 100, 100) and narrow.embedding_dim == 100
    assert (narrow.channel_base, narrow.channel_max) == (4096, 100)
    assert config.changed(channel_max=64, minibatch_std_group=2, embedding_dim=32) == dataclasses.replace(
        config, channels=(64,) * 8, embedding_dim=32, minibatch_std_group=2
    )
    with pytest.raises(ValueError, match="--cbase=100 leaves no channel at 512 px"):
        config.changed(channel_base=100)


def test_float16_comes_with_the_clamp():
    assert TINY.changed(num_fp16_blocks=2) == dataclasses.replace(TINY, num_fp16_blocks=2, conv_clamp=256.0)
    assert TINY_PUBLISHED.changed(num_fp16_blocks=0) == dataclasses.replace(
        TINY_PUBLISHED, num_fp16_blocks=0, conv_clamp=None
    )
    assert TINY.changed(mapping_depth=3).conv_clamp is None


def test_everything_that_can_be_changed_has_a_type():
    types = DiscriminatorConfig.field_types()
    assert types["channel_base"] is types["channel_max"] is types["resolution"] is int
    assert types["channels"] == tuple[int, ...] and types["conv_clamp"] == float | None


def test_only_whole_images_are_judged():
    D, (images, labels) = network(), batch(4)
    output = D.outputs(images, Conditioning(labels))
    assert torch.equal(output.logits, D(images, labels)) and output.extras == {}
    for conditioning in (Conditioning(labels, fade=0.5), Conditioning(labels, patch=torch.ones(4, 3))):
        with pytest.raises(ValueError, match="whole images and does not grow"):
            D.outputs(images, conditioning)


def test_config_round_trip_is_strict():
    assert DiscriminatorConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match="does not know chanels"):
        DiscriminatorConfig.from_dict(TINY.to_dict() | {"chanels": [1]})
    with pytest.raises(ValueError, match="must have 4 entries"):
        DiscriminatorConfig(resolution=32, channels=(8, 8))
    with pytest.raises(ValueError, match="power of two"):
        DiscriminatorConfig(resolution=48, channels=(8, 8, 8, 8))
    with pytest.raises(ValueError, match="256, 512, 1024, 2048"):
        DiscriminatorConfig.published(64)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_minibatch_std_equals_a_loop_over_strided_groups(groups):
    x = torch.randn(8, 5, 4, 4, dtype=torch.float64)
    result = minibatch_std(x, groups)
    assert torch.equal(result[:, :5], x)
    for m in range(groups):
        members = x[m::groups]
        expected = (members.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(result[m::groups, 5], expected.expand(8 // groups, 4, 4))


def test_logits_depend_on_the_members_of_the_group_only():
    D = network()
    images, labels = batch()  # groups of 4 among 8: samples of equal parity
    logits = D(images, labels)
    changed = images.clone()
    changed[1] = -changed[1]
    difference = (D(changed, labels) - logits)[:, 0].abs()
    assert (difference[1::2] > 1e-5).all() and (difference[0::2] < 1e-6).all()
    # Two samples of each of four views, scene-major: eight samples, four groups.
    difference = (D(changed, labels, num_groups=4) - D(images, labels, num_groups=4))[:, 0].abs()
    assert set(torch.nonzero(difference > 1e-6)[:, 0].tolist()) == {1, 5}


def test_group_of_one_makes_samples_independent():
    D = network(DiscriminatorConfig(**{**TINY.to_dict(), "channels": TINY.channels, "minibatch_std_group": 1}))
    images, labels = batch(6)
    torch.testing.assert_close(D(images, labels)[2:3], D(images[2:3], labels[2:3]), rtol=0, atol=1e-6)


def test_forward_is_pure():
    D, (images, labels) = network(), batch()
    before = [t.clone() for t in (images, labels, *D.state_dict().values())]
    assert torch.equal(D(images, labels), D(images, labels))
    for old, new in zip(before, (images, labels, *D.state_dict().values()), strict=True):
        assert torch.equal(old, new)


def test_label_matters():
    D, (images, labels) = network(), batch()
    assert (D(images, labels) - D(images, labels.roll(1, 0))).abs().max() > 1e-3


@pytest.mark.parametrize("config", [TINY, TINY_PUBLISHED], ids=["small", "published"])
def test_every_parameter_that_should_learn_receives_a_gradient(config):
    D, (images, labels) = network(config), batch()
    D(images, labels).square().sum().backward()
    without = {n for n, p in D.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    dead = {"conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight"}
    assert without == ({f"b8_pose.{name}" for name in dead} if config.published_keys else set())


def test_r1_reaches_the_weights_and_is_right():
    """Along a direction in weight space, against a central difference, in float64."""
    D, (images, labels) = network(dtype=torch.float64), batch(4, torch.float64)
    parameters = [p for n, p in D.named_parameters() if n != "b4.out.bias"]  # drops out of every gradient
    gradients = torch.autograd.grad(r1(D, images, labels), parameters, allow_unused=True)
    assert all(g is not None for g, p in zip(gradients, parameters, strict=True) if p.ndim > 1)
    torch.manual_seed(2)
    direction = [torch.randn_like(p) for p in parameters]
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += d * step
        values.append(r1(D, images, labels))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= d * step
    slope = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=0)  # worst seen 7e-11


def test_bfloat16_is_close_to_float32():
    D, (images, labels) = network(TINY_PUBLISHED), batch()
    exact, exact_r1 = D(images, labels), r1(D, images, labels)
    D.low_dtype = torch.bfloat16
    logits = D(images, labels)
    assert logits.dtype == torch.float32 and not torch.equal(logits, exact)
    assert (logits - exact).norm() < 0.04 * exact.norm()  # worst seen 0.012
    assert (r1(D, images, labels) - exact_r1).abs() < 0.02 * exact_r1  # worst seen 0.003


def test_float16_runs_in_the_published_blocks_only():
    config = DiscriminatorConfig.published(256)
    with torch.device("meta"):
        D = Discriminator(config)
    D.low_dtype = torch.float16
    dtypes = dict(zip(config.block_resolutions, map(D.block_dtype, range(6)), strict=True))
    assert [r for r, dtype in dtypes.items() if dtype == torch.float16] == [256, 128, 64, 32]
    D.low_dtype = torch.bfloat16
    assert {D.block_dtype(i) for i in range(6)} == {torch.bfloat16}


def test_illegal_inputs_are_refused():
    D, (images, labels) = network(), batch(6)
    with pytest.raises(ValueError, match="6 samples are not a multiple of minibatch_std_group=4"):
        D(images, labels)
    with pytest.raises(ValueError, match="num_groups=4"):
        D(images, labels, num_groups=4)
    with pytest.raises(ValueError, match=r"images must have shape \[N, 3, 16, 16\]"):
        D(images[:4, :, :8], labels[:4])
    with pytest.raises(ValueError, match=r"labels must have shape \[4, 25\]"):
        D(images[:4], labels[:4, :16])
