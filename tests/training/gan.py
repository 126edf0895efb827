"""Makers of small GANs that several test modules share: networks, a step, its samples and its gradients."""

import dataclasses
import math

import torch

from gaussian import Rendering
from torch_utils.training_stats import Collector
from training.config import TrainingConfig
from training.dataset import Batch
from training.families import family
from training.presets import resolve
from training.samples import SampleStream
from training.step import GanStep


def awaken(G, std=0.1):
    """Lets scenes depend on the latent: layer scales start at 0, where every latent gives the same scene."""
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if ".ls_" in name:
                parameter.add_(std * torch.randn_like(parameter))
    return G


def fixed_pictures(G, views):
    """Returns a render() that maps colours and positions of the scene linearly to V different images."""
    width = 6 * 64  # of the first 64 splats
    planes = torch.randn(views, width, 3 * G.resolution**2, dtype=torch.float64) / math.sqrt(width)

    def render(scene, cameras, resolution=None, background=None, at=None):
        features = torch.cat([scene.means, scene.sh[:, :, 0]], -1)[:, :64].flatten(1)  # [B, width]
        pose = cameras.labels.mean(-1)[..., None]  # [B, V, 1]
        pixels = (
            torch.einsum("bf,vfp->bvp", features, planes[: cameras.shape[1]]) + pose + background.mean(-1)[..., None]
        )
        rgb = pixels.unflatten(-1, (3, G.resolution, G.resolution))
        return Rendering(rgb=rgb, alpha=rgb[:, :, :1], depth=rgb[:, :, :1])

    return render


# Changes of an objective
RELATIVISTIC = {"loss": "relativistic", "r2_gamma": 1.0}
AUGMENTED = {"augment": "fixed", "augment_p": 0.9}
ADAPTIVE = {"augment": "ada", "augment_target": 0.1, "augment_kimg": 0.064}  # p can rise by a half every fourth step


def micro_config(batch_gpu=8, mbstd=4, objective=(), **changes) -> TrainingConfig:
    """Returns the configuration of `micro` with batches of 8, an initial blur of 1 px and changes of the objective."""
    config = resolve("micro", data="")
    return dataclasses.replace(
        config,
        batch=8,
        batch_gpu=batch_gpu,
        discriminator=config.discriminator.changed(minibatch_std_group=mbstd),
        objective=config.objective.changed(blur_sigma=1.0, **dict(objective)),
        **changes,
    )


def micro_networks(config, dtype):
    """Returns G with pictures in place of the rasteriser, and D. Their weights are the same at every call."""
    torch.manual_seed(0)
    of = family(config.family)
    G, D = of.generator(config.generator).to(dtype), of.discriminator(config.discriminator).to(dtype)
    awaken(G)
    pictures = fixed_pictures(G, views=2)

    def render(scene, cameras, resolution=None, background=None, at=None):
        rendering = pictures(
            scene.to(dtype=torch.float64), cameras.to(dtype=torch.float64), background=background.double()
        )
        return dataclasses.replace(rendering, rgb=rendering.rgb.to(dtype))

    G.render = render
    return G, D


def make_step(batch_gpu, dtype, mbstd=1, **changes):
    """Returns a step of a micro GAN of batch 8 with V = 2, and its micro-batches; equal for every split."""
    config = micro_config(batch_gpu, mbstd, **changes)
    G, D = micro_networks(config, dtype)
    of = family(config.family)
    G_ema = of.generator(config.generator).to(dtype)
    G_ema.load_state_dict(G.state_dict())
    labels = torch.randn(50, 25).to(dtype)
    step = GanStep(config, G, of.objective(config, G, D), {"G_ema": G_ema}, Collector())
    stream = SampleStream(config, labels, G.z_dim, torch.device("cpu"))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    own = slice(stream.share(0).start, stream.share(0).stop)  # all of them where there is one rank
    micro = stream.micro_batches(0, Batch(images[own], masks[own], labels[stream.items(0)]))
    for part in micro:
        for name in ("real", "g_z", "d_z"):
            setattr(part, name, getattr(part, name).to(dtype))
    return step, micro


def network(step, name):
    """Returns the module that the phases `name` of a step train."""
    return next(phase.module for phase in step.phases if phase.name == name)


def phase_gradients(step, micro, nimg=0):
    """Returns the gradient of every parameter after each phase, before clipping and stepping, by phase and name."""
    found = {}
    for phase in step.phases:
        step.accumulate(phase, nimg, micro)
        found |= {f"{phase.name}/{n}": p.grad.clone() for n, p in phase.module.named_parameters() if p.grad is not None}
    return found


def make_stream(**changes) -> SampleStream:
    """Returns the samples of a micro GAN whose labels spread more from number to number."""
    labels = torch.randn(50, 25, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 3, 25)
    return SampleStream(micro_config(**changes), labels, 16, torch.device("cpu"))
