"""Defines the face that poses are found with: 51 points, and the ways in which faces differ. NumPy only.

The points are those of the 68-point order without the outline of the jaw (0 to 16), which slides along the silhouette
as a head turns. Lengths are millimetres from the middle between the pupils: x to the right of a picture of the face
(the person's left), y up, z out of the face. The numbers are ours, drawn up from the usual proportions of adult faces:
eyes 63 mm apart, mouth 50 mm wide and 68 mm below the eyes, tip of the nose 40 mm before them.

A face is MEAN + the sum of a_k MODES[k], with a_k about 1 between people and expressions. All modes are symmetric, so
that they cannot take the place of a turn to the side.
"""

import numpy as np

COUNT = 51  # points: brows 10, bridge of the nose 4, its base 5, eyes 12, lips 20

_BROW = ((-57, 13, -6), (-49, 21, 5), (-38, 24, 11), (-26, 22, 14), (-14, 18, 16))  # outer end first
_BRIDGE = ((0, 2, 14), (0, -11, 21), (0, -23, 30), (0, -35, 40))  # the last is the tip
_BASE = ((-14, -43, 19), (-7, -46, 24), (0, -48, 27))  # wing, nostril, below the septum
_EYE = ((-45, 0, -6), (-37, 5, 1), (-27, 5, 3), (-17, -2, 2), (-26, -5, 2), (-37, -5, 0))  # outer corner, over the top
_OUTER_LIPS = ((-25, -68, 10), (-16, -63, 18), (-6, -60, 24), (0, -61, 25))  # corner, then the upper edge
_LOWER_LIP = ((-7, -79, 21), (-16, -75, 17))  # lower edge, from the middle outwards
_INNER_LIPS = ((-20, -68, 12), (-9, -67, 19), (0, -67, 21))
_INNER_LOWER = ((0, -70, 20), (-9, -70, 18))

# Positions in the 51 points.
BROWS, BRIDGE, BASE, EYES, LIPS = slice(0, 10), slice(10, 14), slice(14, 19), slice(19, 31), slice(31, 51)
TIP = 13
OUTER_CORNERS = (19, 28)  # of the eyes, left and right in the picture
MIRRORED = np.array(
    [
        *(*range(9, -1, -1), *range(10, 14), *range(18, 13, -1)),
        *(28, 27, 26, 25, 30, 29, 22, 21, 20, 19, 24, 23),
        *(37, 36, 35, 34, 33, 32, 31, 42, 41, 40, 39, 38, 47, 46, 45, 44, 43, 50, 49, 48),
    ]
)  # the position of each point's mirror image
# Positions that lie apart: a sample that takes one of each is seldom flat.
GROUPS = tuple(
    range(*ends) for ends in ((0, 5), (5, 10), (10, 13), (13, 19), (19, 25), (25, 31), (31, 34), (35, 38), (38, 43))
)


def _flip(points: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int]]:
    return [(-x, y, z) for x, y, z in points]


def _mean_face() -> np.ndarray:
    right_eye = [_flip(_EYE)[i] for i in (3, 2, 1, 0, 5, 4)]
    upper = [*_OUTER_LIPS, *_flip(_OUTER_LIPS)[2::-1]]
    lower = [*_flip(_LOWER_LIP)[::-1], (0, -80, 22), *_LOWER_LIP]
    inner = [*_INNER_LIPS, *_flip(_INNER_LIPS)[1::-1], *_flip(_INNER_LOWER)[:0:-1], *_INNER_LOWER]
    points = [*_BROW, *_flip(_BROW)[::-1], *_BRIDGE, *_BASE, *_flip(_BASE)[1::-1], *_EYE, *right_eye]
    return np.array([*points, *upper, *lower, *inner], dtype=np.float64)


MEAN = _mean_face()  # [51, 3] mm


def _modes() -> np.ndarray:
    x, _, z = MEAN.T
    side = np.sign(x)
    zero = np.zeros(COUNT)

    def part(where: slice | list[int]) -> np.ndarray:
        chosen = np.zeros(COUNT)
        chosen[where] = 1.0
        return chosen

    brows, eyes, lips, base = part(BROWS), part(EYES), part(LIPS), part(BASE)
    along = np.zeros(COUNT)  # 0 at the eyes, 1 at the tip
    along[BRIDGE] = (0.0, 1 / 3, 2 / 3, 1.0)
    corners = part([31, 37, 43, 47])
    lower = part([38, 39, 40, 41, 42, 48, 49, 50])
    outer_lower, outer_upper = part([38, 39, 40, 41, 42]), part([32, 33, 34, 35, 36])
    lids = part([20, 21, 26, 27]) - part([23, 24, 29, 30])
    ends = np.clip((np.abs(x) - 36) / 20, -1, 1)  # of a brow, outer 1
    rows = [  # x, y, z: millimetres
        (0.06 * x, zero, zero),  # width of the face against its height
        (zero, zero, 0.22 * z),  # relief
        (zero, zero, -3.0 * eyes),  # eyes that lie deep
        (2.0 * side * eyes, zero, zero),  # distance of the eyes
        (zero, 1.8 * lids, zero),  # eyes opened
        (zero, zero, -3.0 * eyes * np.clip((np.abs(x) - 31) / 14, -1, 1)),  # faces that are round at the sides
        (zero, 4.0 * brows, zero),  # height of the brows
        (zero, 2.5 * brows * ends, zero),  # their tilt
        (zero, zero, 4.0 * brows),  # ridge of the brow
        (zero, -4.0 * (along + base), zero),  # length of the nose
        (zero, zero, 5.0 * along + 2.0 * base),  # reach of the nose
        (2.5 * side * base * np.abs(x) / 14, zero, zero),  # its width
        (zero, zero, 3.0 * base),  # reach of its base
        (zero, 4.0 * lips, zero),  # height of the mouth
        (zero, zero, 4.0 * lips),  # its reach
        (4.0 * lips * x / 25, zero, zero),  # its width
        (zero, zero, -3.0 * lips * (x / 25) ** 2),  # how round it is
        (zero, -6.0 * lower, -2.0 * lower),  # mouth opened
        (zero, 1.8 * (outer_upper - outer_lower), zero),  # thick lips
        (2.0 * side * corners, 4.0 * lips * (x / 25) ** 2, -2.0 * corners),  # smile
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows])


MODES = _modes()  # [K, 51, 3] mm, one standard deviation each
