"""Says how good an inversion is, and why it is not better: camera, crop, background, head, or model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from torch_utils import random
from training.families.base import Discriminator
from training.inversion.cameras import yaw_pitch_degrees
from training.inversion.fitting import Target
from training.inversion.inversion import Inversion
from training.networks.base import Conditioning
from training.visualization.latents import frontal_ws

GOOD_PSNR = 26.0  # dB of a picture that is well met
CLOSE_RIVAL, FAR_RIVAL = 1.1, 10.0  # share of the loss, and degrees, of a camera that might be the right one as well
OFF_CAMERA = 3.0  # degrees
# Image widths, and share of the size. Where nothing is wrong with the crop, fitting leaves up to 0.042 and 0.08 (9
# ray-cast heads, `tiny`).
OFF_CROP, OFF_SIZE = 0.05, 0.1
OFF_BACKGROUND = 0.1  # mean difference of the border from the background
UNUSUAL_HEAD = 1.3  # root mean square of coordinates whose variance is 1
LATENT_PSNR = 20.0  # dB that latents alone should reach; four ray-cast heads that `tiny` never saw had 24 to 27
JUDGED = 32  # heads of the network that its discriminator judges besides
SIDE_VIEW = 35.0  # degrees of yaw from which on much of the face is hidden


@dataclass(frozen=True)
class Finding:
    """Holds one line of a diagnosis."""

    what: str  # "camera", "crop", ...
    good: bool
    text: str  # what was found and, if that is bad, what to do


@torch.no_grad()
def diagnose(found: Inversion, D: Discriminator | None) -> list[Finding]:
    """Returns what there is to say, the most telling first."""
    kind = list(_judgement(found, D))
    known = all(finding.good for finding in kind)
    rest = [*_camera(found), _crop(found), *_background(found.target), _head(found), _model(found)]
    return [_reached(found), *rest, *kind] if known else [*kind, _reached(found, known=False), *rest]


def _reached(found: Inversion, known: bool = True) -> Finding:
    """Says how well the pictures are met. known: whether they are of the network's kind; others mean nothing."""
    values = found.stages[-1].psnr
    text = "the pictures are met to " + ", ".join(f"{value:.1f}" for value in values) + " dB"
    good = min(values) >= GOOD_PSNR
    if good and not known:
        return Finding("pictures", False, f"{text}, as tuning bends a network to any picture")
    return Finding(
        "pictures", good, text if good else f"{text}; {GOOD_PSNR:g} and more look alike. The lines below say why"
    )


def _camera(found: Inversion) -> Iterator[Finding]:
    if found.misled:
        text = (
            "no head was found where it said, so that cameras were tried. The picture may be cropped otherwise than "
            "those of the training, or show no head; if others fail too, --train-encoder makes another encoder"
        )
        yield Finding("encoder", False, text)
    if found.strayed is not None:
        worst = max(found.strayed)
        text = f"the camera that was given would move by {worst:.1f} degrees if it might"
        good = worst <= OFF_CAMERA
        yield Finding("camera", good, text if good else f"{text}: it may be wrong. Try --camera=auto")
    elif found.doubts is not None:
        yield _encoded_camera(found, found.doubts)
    elif len(found.rivals) > 1:
        best = found.rivals[0][0]
        close = [(loss / best, angle) for loss, angle in found.rivals[1:] if angle >= FAR_RIVAL]
        share, angle = min(close, default=(math.inf, 0.0))
        good = share >= CLOSE_RIVAL
        text = (
            f"no other camera that was tried comes within {CLOSE_RIVAL - 1:.0%} of this one"
            if good
            else f"one {angle:.0f} degrees away met the pictures nearly as well ({share - 1:.0%} worse): it may be the "
            "right one. More --starts decide that better, an encoder too (--train-encoder)"
        )
        yield Finding("camera", good, text)
    yaw, pitch = yaw_pitch_degrees(found.cameras, found.G.geometry)
    where = ", ".join(f"{y:+.1f} and {p:+.1f}" for y, p in zip(yaw.tolist(), pitch.tolist(), strict=True))
    yield Finding("angles", True, f"yaw and pitch of the camera: {where} degrees")
    if float(yaw.abs().min()) > SIDE_VIEW:
        text = (
            f"every picture is seen from the side (yaw {float(yaw[yaw.abs().argmin()]):+.0f} degrees): the other one is"
        )
        known = " told by its mirror image" if found.symmetric else " the network's guess"
        yield Finding("sides", False, f"{text}{known}. A second picture, from there, would help")


def _encoded_camera(found: Inversion, doubts: tuple[float, float]) -> Finding:
    """Compares how far the cameras would rather be elsewhere with what the encoder is usually off."""
    moved = found.motion[:, :2].rad2deg().abs().amax(0).tolist()
    good = all(m <= 2 * doubt for m, doubt in zip(moved, doubts, strict=True))
    text = (
        f"held where the encoder saw it, which errs by {doubts[1]:.1f} degrees of yaw and {doubts[0]:.1f} of pitch; it "
        f"would move by {moved[1]:.1f} and {moved[0]:.1f} if it might"
    )
    advice = ": one of them errs. --encoder=none tries cameras instead, --camera=FILE settles it"
    return Finding("camera", good, text if good else text + advice)


def _crop(found: Inversion) -> Finding:
    motion = found.motion
    focal = found.cameras.intrinsics[:, 0, 0]
    right, down = (-focal * motion[:, 3 + axis] for axis in (0, 1))  # image widths
    larger = (motion[:, 5] - motion[:, 6]).exp() - 1
    offset = float(torch.hypot(right, down).max())
    size = float(larger[larger.abs().argmax()])
    good = offset <= OFF_CROP and abs(size) <= OFF_SIZE
    text = f"the head stands {offset:.1%} of the width from where training pictures have it, {size:+.1%} in size"
    advice = ": crop the picture as those were (dataset_tool.py import portraits)"
    return Finding("crop", good, text if good else text + advice)


def _background(target: Target) -> Iterator[Finding]:
    if target.masks is not None:
        return
    away = (target.images - target.background[:, None, None]).abs().mean(1)  # [V, R, R]
    top = float(torch.cat([away[:, 0], away[:, :, 0], away[:, :, -1]], 1).mean())  # heads leave at the lower edge
    if top > OFF_BACKGROUND:
        text = "the border of the picture is not of the network's background: give --mask, or a picture with alpha"
        yield Finding("background", False, text)


def _head(found: Inversion) -> Finding:
    size = float(found.coordinates.mean(0).square().mean().sqrt())
    good = size <= UNUSUAL_HEAD
    text = f"its latent lies {size:.2f} deviations from the mean head, where those of the network lie at 1"
    return Finding("head", good, text if good else f"{text}: the network makes few heads like this one")


def _model(found: Inversion) -> Finding:
    latent = [stage.psnr for stage in found.stages if stage.name in ("search", "latent", "parts")][-1]
    gained = max(b - a for a, b in zip(latent, found.stages[-1].psnr, strict=True))
    text = f"the network as it is meets the pictures to {min(latent):.1f} dB"
    text += f", and tuning added {max(gained, 0.0):.1f} on the side that they show"
    good = min(latent) >= LATENT_PSNR
    advice = ": it hardly knows this head, and other sides are its own. More pictures of other sides help"
    return Finding("model", good, text if good else text + advice)


def _judgement(found: Inversion, D: Discriminator | None) -> Iterator[Finding]:
    """Compares the discriminator's logits of the pictures with those of the network's own heads, same cameras."""
    G, target = found.original, found.target
    if D is None:
        return
    z = random.normal(0, "inversion/judged", range(JUDGED), (G.z_dim,))
    ws, camera = frontal_ws(G, z, psi=1.0), found.cameras[:1]
    shown = []
    for w in ws.split(1):
        shown.append(G.render(G.synthesis(w), camera.reshape(1, 1), target.images.shape[-1], target.background).rgb[0])
    pictures = torch.cat([*shown, target.images[:1]])
    told = Conditioning(camera.labels.expand(len(pictures), -1))
    logits = D.outputs(2 * pictures - 1, told, len(pictures)).logits[:, 0]
    above = float((logits[:-1] < logits[-1]).float().mean())
    text = f"the discriminator finds the first picture more real than {above:.0%} of the network's own heads"
    good = above >= 0.05
    yield Finding("kind", good, text if good else f"{text}: it is no head of the kind that the network learnt from")
