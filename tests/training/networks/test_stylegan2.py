"""The synthesis network: its convolution against the slow twin, noise, types, and the w that each layer reads."""

import math

import pytest
import torch

from torch_utils import ops
from training.networks import stylegan2
from training.networks.stylegan2 import SynthesisNetwork, hashed_noise, modulated_conv, modulated_conv_reference


def network(resolution: int = 16, channels: tuple[int, ...] = (8, 6, 5), **options) -> SynthesisNetwork:
    torch.manual_seed(0)
    G = SynthesisNetwork(7, resolution, 5, channels, **options)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return G


@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_matches_the_twin(up):
    generator = torch.Generator().manual_seed(1)
    x, weight, styles = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((3, 4, 6, 6), (5, 4, 3, 3), (3, 4))
    )
    fast = modulated_conv(x, weight, styles, up, gain=0.7)
    slow = 0.7 * modulated_conv_reference(x, weight, styles, demodulate=True, up=up)
    seed = torch.randn(slow.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)  # worst seen 2e-15
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, styles), seed) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_image_layer_matches_the_twin():
    torch.manual_seed(0)
    layer = stylegan2.ToRGB(6, 4, 7).double()
    x, w = torch.randn(2, 6, 3, 5).double(), torch.randn(2, 7).double()
    expected = modulated_conv_reference(x, layer.weight, layer.affine(w) / math.sqrt(6), demodulate=False)
    torch.testing.assert_close(layer(x, w), expected + layer.bias[:, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", ["const", "none", torch.tensor([3, 9])])
def test_a_network_is_the_sum_of_its_enlarged_blocks(noise):
    """By the slow twins, layer by layer, with the ws in published order: an image shares its w with the next layer."""
    G = network().double()
    ws = torch.randn(2, G.num_ws, 7, dtype=torch.float64)
    image, x, number = 0.0, G.b4.const.expand(2, -1, -1, -1), 0
    for block in G.blocks():
        first = number
        for layer in block.layers():
            x = modulated_conv_reference(x, layer.weight, layer.affine(ws[:, number]), True, layer.up)
            if isinstance(noise, torch.Tensor):
                x = x + hashed_noise(noise, number, block.resolution).double() * layer.noise_strength
            elif noise == "const":
                x = x + layer.noise_const * layer.noise_strength
            x = ops.bias_act_reference(x, layer.bias)
            number += 1
        image = image if first == 0 else ops.upsample_reference(image)
        image = image + block.torgb(x, ws[:, number])
    assert number + 1 == G.num_ws == 6
    torch.testing.assert_close(G(ws, noise), image, rtol=0, atol=1e-10)


def test_every_w_counts_and_every_parameter_learns():
    G = network()
    ws = torch.randn(2, G.num_ws, 7).requires_grad_()
    G(ws).square().sum().backward()
    assert (ws.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in G.parameters())


def test_samples_do_not_depend_on_the_batch():
    G, ws, keys = network(), torch.randn(3, 6, 7), torch.tensor([5, 1, 8])
    together = G(ws, keys)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], G(ws[i : i + 1], keys[i : i + 1]), rtol=0, atol=1e-5)


def test_bfloat16_is_close_and_the_image_is_float32():
    G, ws = network(), torch.randn(2, 6, 7)
    low, full = G(ws, low_dtype=torch.bfloat16), G(ws)
    assert low.dtype == torch.float32 and 0 < (low - full).norm() < 0.03 * full.norm()  # 0.009 seen


def test_the_new_block_of_a_grown_network_fades_in():
    G, ws = network(), torch.randn(2, 6, 7)
    small = network(8, (8, 6))
    small.load_state_dict({key: value for key, value in G.state_dict().items() if not key.startswith("b16")})
    start, half, end = (G(ws, fade=a, fade_from=8) for a in (0.0, 0.5, 1.0))
    torch.testing.assert_close(start, ops.upsample(small(ws[:, :4])), rtol=0, atol=1e-5)
    torch.testing.assert_close(half, (start + end) / 2, rtol=0, atol=1e-5)
    assert torch.equal(end, G(ws))


def test_noise_is_normal_and_differs_by_key_layer_and_pixel():
    noise = hashed_noise(torch.arange(8), 2, 64)
    assert noise.shape == (8, 1, 64, 64) and noise.dtype == torch.float32
    assert torch.equal(noise[3:5], hashed_noise(torch.tensor([3, 4]), 2, 64))
    n = noise.numel()  # 32768; bounds of five standard errors
    assert abs(noise.mean()) < 5 / n**0.5 and abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(noise.pow(3).mean()) < 5 * (15 / n) ** 0.5 and abs(noise.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    others = hashed_noise(torch.arange(8), 3, 64)
    across, down = (noise[..., 1:], noise[..., :-1]), (noise[:, :, 1:], noise[:, :, :-1])
    for a, b in ((noise[1:], noise[:-1]), (noise, others), across, down):
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5
    assert len(noise.unique()) > 0.999 * n


@pytest.mark.parametrize("resolution", [0, 2, 12])
def test_sizes_that_are_no_powers_of_two_are_refused(resolution):
    with pytest.raises(ValueError, match=f"not of {resolution}"):
        stylegan2.channel_counts(resolution, 64, 8)


def test_wrong_inputs_are_refused():
    G = network()
    with pytest.raises(ValueError, match=r"ws must have shape \[B, 6, w_dim\], got \[2, 7\]"):
        G(torch.randn(2, 7))
    with pytest.raises(ValueError, match="noise='random' is unknown"):
        G(torch.randn(2, 6, 7), "random")
    with pytest.raises(ValueError, match="leave none at 64 px"):
        stylegan2.channel_counts(64, 32, 8)
