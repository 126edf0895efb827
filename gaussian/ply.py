"""Reads and writes scenes as `.ply` files in the layout of 3D Gaussian Splatting (Kerbl et al. 2023).

Splat viewers read this layout: binary little-endian float32, one element "vertex" with x y z, nx ny nz (zero),
f_dc_0..2 (raw degree-0 SH), f_rest_* (the higher SH, channel-major: all of red first; absent at degree 0), opacity
(logit), scale_0..2 (ln of the standard deviation), rot_0..3 (wxyz, as stored, not normalised). A comment of the header
says which axis of the file's world is up; the layout itself does not, and readers ignore it.
"""

from pathlib import Path

import numpy as np
import torch

from gaussian.gaussians import Gaussians
from gaussian.spherical_harmonics import NUM_COEFFICIENTS

MAX_LOGIT = 30.0  # stands for an opacity of 0 or 1: sigmoid(30) is 1 - 1e-13, and viewers need finite values
HEADER_LIMIT = 1 << 16  # bytes within which a header must end
UPS = ("y", "-y")  # axes of a file that may be up: the project's, and that of splats made from photographs
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))  # about z


def _property_names(num_coefficients: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * (num_coefficients - 1))]
    return [*names, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def save_ply(path: str | Path, gaussians: Gaussians, scene: int = 0, up: str = "y") -> None:
    """Writes one scene of the batch. Infinite opacity logits become +-30; other values are written as they are.

    up: "y" for a world as it is here; "-y" turns the scene by half a turn about z, (x, y, z) -> (-x, -y, z), colours of
    higher degrees included. Splats trained from photographs have -y up, and viewers are made for those.
    Raises ValueError if the scene does not exist, if `up` is neither, or if any other value is not finite.
    """
    if up not in UPS:
        raise ValueError(f"up={up!r}: {' and '.join(UPS)} are legal")
    one = gaussians.scene(scene).detach().to(device="cpu", dtype=torch.float32)
    if up == "-y":
        one = one.transformed(rotation=HALF_TURN)
    count, num_coefficients = one.num_splats, one.sh.shape[2]
    opacity = one.opacity_logits[0]
    columns = [
        one.means[0],
        torch.zeros(count, 3),
        one.sh[0, :, 0],
        one.sh[0, :, 1:].transpose(1, 2).flatten(1),  # [N, 3 (K - 1)], channel-major
        torch.where(opacity.isinf(), opacity.sign() * MAX_LOGIT, opacity),
        one.log_scales[0],
        one.quats[0],
    ]
    table = torch.cat(columns, dim=1).numpy().astype("<f4")
    names = _property_names(num_coefficients)
    bad = ~np.isfinite(table).all(axis=0)
    if bad.any():
        raise ValueError(f"cannot save {path}: not finite: {[n for n, b in zip(names, bad, strict=True) if b]}")
    lines = ["ply", "format binary_little_endian 1.0", f"comment up is {up if up[0] == '-' else '+' + up}"]
    lines += [f"element vertex {count}"]
    lines += [f"property float {name}" for name in names] + ["end_header", ""]
    with open(path, "wb") as file:
        file.write("\n".join(lines).encode("ascii"))
        file.write(table.tobytes())


def load_ply(path: str | Path) -> Gaussians:
    """Reads a file in the 3DGS layout as a batch of one scene; the order of the properties is free.

    Raises ValueError if the file is not binary little-endian, holds anything but float vertices, lacks a property
    (normals may be missing), or is shorter than its header says.
    """
    data = Path(path).read_bytes()
    end = data.find(b"end_header", 0, HEADER_LIMIT)
    body = data.find(b"\n", end) + 1
    if not data.startswith(b"ply") or end < 0 or body == 0:
        raise ValueError(f"{path} is not a ply file")
    lines = [line.split() for line in data[:end].decode("ascii", errors="replace").splitlines()]
    statements = [line for line in lines if line and line[0] not in ("ply", "comment", "obj_info")]
    if not statements or statements[0] != ["format", "binary_little_endian", "1.0"]:
        raise ValueError(
            f"{path}: legal is 'format binary_little_endian 1.0', got {' '.join(statements[0] if statements else [])!r}"
        )
    if len(statements) < 2 or statements[1][:2] != ["element", "vertex"]:
        raise ValueError(f"{path}: the first element must be 'vertex'")
    for line in statements[2:]:
        if line[:2] not in (["property", "float"], ["property", "float32"]):
            raise ValueError(f"{path}: only float properties of one element are read, got {' '.join(line)!r}")
        if len(line) != 3:
            raise ValueError(f"{path}: a property must have a type and a name, got {' '.join(line)!r}")
    if not (len(statements[1]) == 3 and statements[1][2].isascii() and statements[1][2].isdigit()):
        raise ValueError(f"{path}: the number of vertices must be whole, got {' '.join(statements[1][2:])!r}")
    count, names = int(statements[1][2][:18]), [line[2] for line in statements[2:]]
    if len(data) - body < 4 * count * len(names):
        raise ValueError(f"{path} ends early: {count} vertices of {len(names)} floats do not fit in {len(data)} bytes")
    table = np.frombuffer(data, "<f4", count * len(names), body).reshape(count, len(names)).astype(np.float32)

    num_rest = sum(name.startswith("f_rest_") for name in names)
    num_coefficients = 1 + num_rest // 3
    missing = set(_property_names(num_coefficients)) - set(names) - {"nx", "ny", "nz"}
    if missing or num_coefficients not in NUM_COEFFICIENTS or num_rest % 3:
        raise ValueError(f"{path} is not in the 3DGS layout: missing {sorted(missing)}, {num_rest} f_rest properties")

    def columns(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(table[:, [names.index(name) for name in wanted]])[None]

    rest = columns(*(f"f_rest_{i}" for i in range(num_rest))).unflatten(2, (3, num_coefficients - 1))
    constant = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, :, None]  # [1, N, 1, 3]
    return Gaussians(
        means=columns("x", "y", "z"),
        log_scales=columns("scale_0", "scale_1", "scale_2"),
        quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        opacity_logits=columns("opacity"),
        sh=torch.cat([constant, rest.transpose(2, 3)], dim=2),
    )
