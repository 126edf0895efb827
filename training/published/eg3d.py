"""Holds the cameras that most published networks learnt under: those of EG3D's labels (Chan et al. 2022)."""

from gaussian import Geometry


def geometry(pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Geometry:
    """Returns the geometry of EG3D's labels of FFHQ and AFHQ: 2.7 from the origin, one lens, looking at `pivot`."""
    lens = ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0))
    return Geometry(pivot=pivot, centre=(0.0, 0.0, 0.0), radius=2.7, intrinsics=lens)
