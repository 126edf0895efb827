"""Turns scenes into triangles: densities by their level, splats by the depth that cameras see."""
