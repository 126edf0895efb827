"""Fits a morphable model to landmarks that were seen in a picture, as one differentiable layer without weights.

Landmarks are linear in the model's coefficients but for the camera, so a few Gauss-Newton steps find the coefficients
and the camera's angles that explain them best, each landmark as far as it is trusted, under the prior that whitened
coefficients are standard normal: the posterior mean of a linear Gaussian model (Bishop 2006, section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.morphable.model import SHAPE_BLOCKS, MorphableModel

STEPS = 2  # of Gauss-Newton; angles are told to a few hundredths of a radian before
LOOSE = 0.01  # prior precision of the angles, radians^-2: next to none
ANGLES = 2  # yaw and pitch


class LandmarkFit(nn.Module):
    """Holds L landmarks of a model with M numbers of shape, and the distance and focal length of its cameras.

    Cameras are level and look at the origin.
    """

    mean: Tensor  # [L, 3] world units
    modes: Tensor  # [M, L, 3] what one whitened number adds
    lens: Tensor  # [2] distance from the origin; focal length in half images

    def __init__(self, landmarks: int, numbers: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(landmarks, 3))
        self.register_buffer("modes", torch.zeros(numbers, landmarks, 3))
        self.register_buffer("lens", torch.tensor([1.0, 1.0]))

    def describe(self, model: MorphableModel, distance: float, focal: float) -> None:
        """Takes over a model, and cameras at a distance from the origin, with a focal length in image widths."""
        bases = {"identity": model.identity, "expression": model.expression}
        self.mean.copy_(model.shape[model.landmarks])
        parts = []
        for block in SHAPE_BLOCKS:
            basis = bases[block][:, model.landmarks]  # [n, L, 3]
            self.mean.add_(torch.einsum("k,klc->lc", model.means[block], basis))
            parts.append(torch.einsum("kj,klc->jlc", model.factors[block], basis))
        self.modes.copy_(torch.cat(parts))
        self.lens.copy_(torch.tensor([distance, 2 * focal]))

    def project(self, z: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where landmarks of z [N, M] are seen from yaw and pitch [N, 2], and the derivatives of that.

        Places are [N, L, 2], 0 the middle of the image and -1 and 1 its edges; derivatives [N, M + 2, L, 2].
        """
        points = self.mean + torch.einsum("nk,klc->nlc", z, self.modes)  # [N, L, 3]
        axes, by_yaw, by_pitch = _axes(angles)
        local = points @ axes.mT  # right, up, towards the camera
        turned = torch.stack([points @ by_yaw.mT, points @ by_pitch.mT], dim=1)
        moved = torch.cat([torch.einsum("klc,nrc->nklr", self.modes, axes), turned], dim=1)  # [N, M + 2, L, 3]
        distance, focal = self.lens
        flip = torch.stack([focal, -focal])  # rows of an image run down
        scale = 1 / (distance - local[..., 2:])  # [N, L, 1]
        places = flip * local[..., :2] * scale
        nearer = (flip * local[..., :2] * scale.square())[:, None] * moved[..., 2:]
        return places, flip * moved[..., :2] * scale[:, None] + nearer

    def forward(self, places: Tensor, precision: Tensor, start: Tensor) -> Tensor:
        """Returns z and angles [N, M + 2] that explain places [N, L, 2].

        precision: [N, L] of places, one over their variance. start: [N, 2] angles that are about right.
        """
        numbers = len(self.modes)
        known = torch.cat([places.new_zeros(len(places), numbers), start], dim=1)
        prior = torch.cat([known.new_ones(numbers), known.new_full((ANGLES,), LOOSE)])
        found, weight = known, precision[:, None, :, None]
        for _ in range(STEPS):
            seen, moved = self.project(found[:, :numbers], found[:, numbers:])
            weighted = (weight * moved).flatten(2)  # [N, M + 2, 2 L]
            normal = weighted @ moved.flatten(2).mT + torch.diag(prior)
            pull = (weighted @ (places - seen).flatten(1)[..., None])[..., 0] - prior * (found - known)
            factor, _ = torch.linalg.cholesky_ex(normal)  # positive definite by its prior, so nothing is asked
            found = found + torch.cholesky_solve(pull[..., None], factor)[..., 0]
        return found


def _axes(angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the axes [N, 3, 3] of cameras at yaw and pitch [N, 2] by rows, and their derivatives by each angle."""
    (sy, sp), (cy, cp) = angles.sin().unbind(1), angles.cos().unbind(1)
    o = torch.zeros_like(sy)

    def rows(*values: Tensor) -> Tensor:
        return torch.stack(values, dim=-1).unflatten(-1, (3, 3))

    return (
        rows(cy, o, -sy, -sy * sp, cp, -cy * sp, sy * cp, sp, cy * cp),
        rows(-sy, o, -cy, -cy * sp, o, sy * sp, cy * cp, o, -sy * cp),
        rows(o, o, o, -sy * cp, -sp, -cy * cp, -sy * sp, cp, -cy * sp),
    )
