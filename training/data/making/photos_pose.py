"""Finds the pose of faces from their landmarks: robust, in batches, with a face that bends. NumPy only.

The camera looks at the origin of the face's world from `distance` D, with its axes x right, y down, z forward:

    pixel = centre + scale D (x, y) / (D + z),    (x, y, z) = R X,    X = place + size (MEAN + sum of a_k MODES[k])

Unknown are R, the centre, the scale (pixels per world unit at the origin) and the shape a. A start comes from random
samples of points under scaled orthography (RANSAC with the least median of residuals); Levenberg-Marquardt steps with
Huber weights (Huber 1964) follow, in which every a_k has the prior N(mean, 1). What a whole set says about the mean
shape moves the prior of all: a picture alone cannot tell a turned head from another face, many can.
"""

from dataclasses import dataclass, replace

import numpy as np

from training.data.making import photos_face as face

NOISE_MM = 1.5  # standard deviation of a landmark on a face, the detector's error and the model's together
_HUBER = 2.0  # noise levels from which on a residual counts linearly
_REJECT = 5.0  # noise levels beyond which a landmark is left out at the end
_SAMPLES = 96  # random samples of points per face
_STEPS, _AGAIN = 12, 3  # of Levenberg and Marquardt, from a new start and after the mean face has moved
_ROUNDS = 12  # of the mean face
_OWN_FACES, _OWN_MM = 2.0, 1.5  # the canonical face counts as so many faces, each to within so many millimetres
_GOOD = 0.7  # share of landmarks that a face must have explained to take part in the mean face
_BEND = 0.4  # how far a face bends, in the modes' own standard deviations
_CHUNK = 512  # faces at a time
_SEED = 1

FRONTAL = np.diag([1.0, -1.0, -1.0])  # world to camera axes of a camera at +z


@dataclass(frozen=True)
class Placement:
    """Places the face in the world of the labels."""

    frame: np.ndarray  # [3, 3] a rotation times world units per millimetre
    offset: np.ndarray  # [3] world position of the middle between the pupils

    @property
    def size(self) -> float:
        """World units per millimetre."""
        return float(np.linalg.norm(self.frame[:, 0]))

    def points(self, shapes: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Returns world points [N, 51, 3] of the faces with shapes [N, K] about a mean face [51, 3] (mm)."""
        return self.offset + (mean + np.tensordot(shapes, face.MODES, axes=1)) @ self.frame.T


@dataclass(frozen=True)
class Poses:
    """Holds the poses of N faces."""

    rotations: np.ndarray  # [N, 3, 3] world to camera
    centres: np.ndarray  # [N, 2] pixels, where the world's origin is seen
    scales: np.ndarray  # [N] pixels per world unit at the origin
    shapes: np.ndarray  # [N, K]
    misfits: np.ndarray  # [N] median residual in millimetres on the face
    inliers: np.ndarray  # [N] share of the landmarks that the pose explains


def solve(points: np.ndarray, distances: np.ndarray, placement: Placement, adapt: bool = True) -> Poses:
    """Finds the poses of faces with landmarks [N, 51, 2] in pixels, seen from `distances` [N] world units.

    adapt: let the set move the mean face. The random samples are the same in every call.
    """
    mean = face.MEAN
    chunks = [slice(i, i + _CHUNK) for i in range(0, len(points), _CHUNK)]
    poses = _join([_start(points[rows], placement) for rows in chunks])

    def refine(steps: int) -> Poses:
        return _join([_refine(points[r], distances[r], placement, mean, _part(poses, r), steps) for r in chunks])

    poses = refine(_STEPS)
    for _ in range(_ROUNDS if adapt and len(points) > 1 else 0):
        good = np.flatnonzero(poses.inliers > _GOOD)
        mean = _common_face(points[good], distances[good], placement, mean, _part(poses, good))
        poses = refine(_AGAIN)
    return poses


def _common_face(
    points: np.ndarray, distances: np.ndarray, placement: Placement, mean: np.ndarray, poses: Poses
) -> np.ndarray:
    """Returns the mean face [51, 3] that explains the landmarks best under `poses`: one Gauss-Newton step.

    It stays symmetric, and as the canonical face stands: turned, moved and scaled to fit that one.
    """
    residuals, _ = _linearize(poses, points, distances, placement, mean)
    units = NOISE_MM * placement.size * poses.scales[:, None]
    weights = np.minimum(1.0, _HUBER / np.maximum(np.linalg.norm(residuals, axis=-1) / units, 1e-9))
    project = _projection(poses, points, distances, placement, mean)  # [N, 51, 2, 3]
    slopes = np.einsum("npci,nij,jk->npck", project, poses.rotations, placement.frame) / units[..., None, None]
    slopes *= poses.scales[:, None, None, None]
    normal = np.einsum("np,npci,npcj->pij", weights, slopes, slopes)  # [51, 3, 3]
    moment = -np.einsum("np,npci,npc->pi", weights, slopes, residuals / units[..., None])
    flip = np.array([-1.0, 1.0, 1.0])
    normal = normal + flip[:, None] * normal[face.MIRRORED] * flip
    moment = moment + flip * moment[face.MIRRORED]
    # The prior: so many faces of our own, to within so many millimetres.
    tie = 2 * _OWN_FACES / _OWN_MM**2
    normal += tie * np.eye(3)
    moment += tie * (face.MEAN - mean)
    fresh = mean + np.linalg.solve(normal, moment[..., None])[..., 0]
    middle, own = fresh.mean(0), face.MEAN.mean(0)
    left, values, right = np.linalg.svd((fresh - middle).T @ (face.MEAN - own))
    return (fresh - middle) @ (left @ right) * (values.sum() / ((fresh - middle) ** 2).sum()) + own


def _part(poses: Poses, rows: slice | np.ndarray) -> Poses:
    return Poses(**{name: value[rows] for name, value in vars(poses).items()})


def _join(parts: list[Poses]) -> Poses:
    return Poses(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def _start(points: np.ndarray, placement: Placement) -> Poses:
    """Finds rotation, centre and scale under scaled orthography: the sample whose median residual is least."""
    rng = np.random.default_rng(_SEED)
    samples = np.stack([rng.choice(list(group), _SAMPLES) for group in face.GROUPS], axis=-1)  # [S, M]
    world = placement.points(np.zeros((1, len(face.MODES))), face.MEAN)[0]  # [51, 3]
    rows = np.concatenate([world, np.ones((face.COUNT, 1))], axis=-1)  # [51, 4]
    inverses = np.linalg.pinv(rows[samples])  # [S, 4, M]
    affine = np.einsum("sqm,nsmc->nsqc", inverses, points[:, samples])  # [N, S, 4, 2]
    left, values, right = np.linalg.svd(np.swapaxes(affine[:, :, :3], -1, -2), full_matrices=False)
    two = left @ right  # [N, S, 2, 3] the nearest rows of a rotation
    scales = values.mean(-1)  # [N, S]
    turned = np.einsum("nsij,pj->nspi", two, world)
    # The centre that goes with the rotation: the median keeps outliers out of it.
    loose = points[:, None] - scales[..., None, None] * turned
    centres = np.median(loose, axis=2)  # [N, S, 2]
    residuals = np.linalg.norm(loose - centres[:, :, None], axis=-1)
    costs = np.median(residuals, axis=-1) / np.maximum(scales, 1e-12)
    best = costs.argmin(-1)
    pick = np.arange(len(points)), best
    rotations = np.concatenate([two[pick], np.cross(two[pick][:, 0], two[pick][:, 1])[:, None]], axis=1)
    count = len(points)
    return Poses(
        rotations, centres[pick], scales[pick], np.zeros((count, len(face.MODES))), np.zeros(count), np.ones(count)
    )


def _refine(
    points: np.ndarray, distances: np.ndarray, placement: Placement, mean: np.ndarray, start: Poses, steps: int
) -> Poses:
    """Minimises the robust cost of faces, from `start`."""
    poses, damping = start, np.full(len(points), 1e-3)
    # Pixels of one noise level. Not of the scale in work: a face that shrinks while its scale grows would gain by it.
    units = (NOISE_MM * placement.size * start.scales)[:, None]  # [N, 1]
    k = len(face.MODES)
    cost = _cost(poses, points, units, distances, placement, mean)
    for _ in range(steps):
        residuals, jacobian = (
            v / units.reshape(-1, *[1] * (v.ndim - 1)) for v in _linearize(poses, points, distances, placement, mean)
        )
        lengths = np.linalg.norm(residuals, axis=-1)  # [N, 51]
        weights = np.minimum(1.0, _HUBER / np.maximum(lengths, 1e-9))[..., None, None]
        normal = np.einsum("npci,npcj->nij", weights * jacobian, jacobian, optimize=True)
        normal[:, 6:, 6:] += np.eye(k) / _BEND**2
        moment = np.einsum("npci,npc->ni", weights * jacobian, residuals, optimize=True)
        moment[:, 6:] += poses.shapes / _BEND**2
        diagonal = np.einsum("nii->ni", normal)
        diagonal *= 1.0 + damping[:, None]
        step = -np.linalg.solve(normal, moment[..., None])[..., 0]
        tried = _moved(poses, step)
        fresh = _cost(tried, points, units, distances, placement, mean)
        better = fresh < cost
        poses = Poses(**{n: np.where(_like(better, old), vars(tried)[n], old) for n, old in vars(poses).items()})
        cost = np.where(better, fresh, cost)
        damping = np.where(better, damping / 5, damping * 5)
    lengths = np.linalg.norm(_project(poses, points, distances, placement, mean)[2], axis=-1) / units
    misfits = NOISE_MM * np.median(lengths, axis=-1)
    return replace(poses, misfits=misfits, inliers=(lengths < _REJECT).mean(-1))


def _like(flags: np.ndarray, value: np.ndarray) -> np.ndarray:
    return flags.reshape(-1, *[1] * (value.ndim - 1))


def _project(
    poses: Poses, points: np.ndarray, distances: np.ndarray, placement: Placement, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns camera axes positions [N, 51, 3], what is seen [N, 51, 2] at the origin's depth, residuals in pixels."""
    local = np.einsum("nij,npj->npi", poses.rotations, placement.points(poses.shapes, mean))
    # Nothing comes nearer to the camera than a twentieth of its distance, also in a step that will be refused.
    depth = np.maximum(distances[:, None] + local[..., 2], 0.05 * distances[:, None])
    seen = distances[:, None, None] * local[..., :2] / depth[..., None]
    return local, seen, poses.centres[:, None] + poses.scales[:, None, None] * seen - points


def _projection(
    poses: Poses, points: np.ndarray, distances: np.ndarray, placement: Placement, mean: np.ndarray
) -> np.ndarray:
    """Returns the derivatives [N, 51, 2, 3] of what is seen, at the origin's depth, by positions in camera axes."""
    local, seen, _ = _project(poses, points, distances, placement, mean)
    depth = np.maximum(distances[:, None] + local[..., 2], 0.05 * distances[:, None])
    project = np.zeros((*local.shape[:2], 2, 3))
    project[..., 0, 0] = project[..., 1, 1] = distances[:, None] / depth
    project[..., 2] = -seen / depth[..., None]
    return project


def _linearize(
    poses: Poses, points: np.ndarray, distances: np.ndarray, placement: Placement, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns residuals [N, 51, 2] and their derivatives [N, 51, 2, 6 + K], both in pixels.

    Parameters: a small turn of the camera axes (3), the centre (2), ln scale, the shape (K).
    """
    local, seen, residuals = _project(poses, points, distances, placement, mean)
    scale = poses.scales[:, None, None, None]
    project = _projection(poses, points, distances, placement, mean)
    x, y, z = local[..., 0], local[..., 1], local[..., 2]
    zero = np.zeros_like(x)
    turns = np.stack([zero, z, -y, -z, zero, x, y, -x, zero], axis=-1).reshape(*x.shape, 3, 3)  # d(w x p)/dw
    bends = np.einsum("nij,jk,mpk->npim", poses.rotations, placement.frame, face.MODES, optimize=True)
    parts = [
        scale * (project @ turns),
        np.broadcast_to(np.eye(2), (*x.shape, 2, 2)),
        (scale[..., 0] * seen)[..., None],
        scale * (project @ bends),
    ]
    return residuals, np.concatenate(parts, axis=-1)


def _cost(
    poses: Poses, points: np.ndarray, units: np.ndarray, distances: np.ndarray, placement: Placement, mean: np.ndarray
) -> np.ndarray:
    lengths = np.linalg.norm(_project(poses, points, distances, placement, mean)[2], axis=-1) / units
    huber = np.where(lengths < _HUBER, 0.5 * lengths**2, _HUBER * (lengths - 0.5 * _HUBER))
    return huber.sum(-1) + 0.5 * ((poses.shapes / _BEND) ** 2).sum(-1)


def _moved(poses: Poses, step: np.ndarray) -> Poses:
    """Applies steps [N, 6 + K] as `_linearize` defines them."""
    return replace(
        poses,
        rotations=rotation(step[:, :3]) @ poses.rotations,
        centres=poses.centres + step[:, 3:5],
        scales=poses.scales * np.exp(np.clip(step[:, 5], -1, 1)),
        shapes=poses.shapes + step[:, 6:],
    )


def rotation(vectors: np.ndarray) -> np.ndarray:
    """Returns the rotations [N, 3, 3] about vectors [N, 3] by their lengths in radians (Rodrigues' formula)."""
    angle = np.linalg.norm(vectors, axis=-1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    # np.sinc(t) is sin(pi t) / (pi t).
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * cross @ cross
