"""Shows what a part of a latent does: films and grids in which one named block changes and all others stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussian import Cameras
from training.control.blocks import Blocks
from training.data.label_file import parse_json
from training.families.base import Generator
from training.visualization.grids import save_image_grid
from training.visualization.latents import Heads, along, straight
from training.visualization.video import Look, render_panels

POSE, CHAIN = "pose", "identity"  # what moves the camera alone, and what changes all but the expression
KEYS = 6  # of a block, after its mean, where no file has them
KEY_SEED = 31  # of these


@dataclass(frozen=True)
class Control:
    """Says what changes in a film."""

    what: str  # POSE, or a block
    fix_subject: bool = False  # all cells show the first head, and each has keys of its own
    key_file: str | None = None  # JSON, [[numbers of the block], ...]

    @property
    def path(self) -> str:
        """The camera's path where none was asked for."""
        return "swell" if self.what == POSE else "still"

    @property
    def chains(self) -> bool:
        """Whether heads change into each other."""
        return self.what == CHAIN and self.key_file is None and not self.fix_subject

    def blocks(self, G: Generator) -> Blocks:
        """Returns the blocks of a network. Raises ValueError, with the option, for one that has none, or not this."""
        if G.blocks is None:
            raise ValueError(
                f"--control={self.what}: the latents of this network have no named blocks; legal is {POSE}"
            )
        if self.what not in G.blocks.slices:
            raise ValueError(f"--control={self.what}: legal are {POSE}, {', '.join(G.blocks.slices)}")
        return G.blocks

    def check(self, G: Generator, heads: Heads, cells: int) -> None:
        """Raises ValueError, with the option's name, for what contradicts the network, the heads or the cells."""
        if self.what == POSE:
            for flag, given in (("--fix-subject", self.fix_subject), ("--key-expressions", self.key_file is not None)):
                if given:
                    raise ValueError(f"{flag} means nothing with --control={POSE}, which changes no head")
            return
        self.blocks(G)
        if heads.z is None:
            raise ValueError(f"--control={self.what} changes latents, and --w-file holds none; give --seeds")
        if self.chains and len(heads.names) < 2 * cells:
            raise ValueError(
                f"--control={CHAIN} leads from head to head in every cell of --grid, so --seeds must name at least "
                f"{2 * cells}, and names {len(heads.names)}; --fix-subject or --key-expressions change {CHAIN} alone"
            )
        if not self.chains and not self.fix_subject and len(heads.names) != cells:
            raise ValueError(
                f"--control={self.what} shows one head in each of the {cells} cells of --grid, and --seeds names "
                f"{len(heads.names)}"
            )

    def keys(self, G: Generator) -> Tensor:
        """Returns what the block runs through, latent numbers [K, n]: its mean and KEYS draws, or those of the file."""
        part = self.blocks(G)[self.what]
        count = part.stop - part.start
        if self.key_file is None:
            draws = np.random.RandomState(KEY_SEED).randn(KEYS, count)
            return torch.from_numpy(np.concatenate([np.zeros((1, count)), draws]).astype(np.float32))
        return read_keys(self.key_file, count)

    def num_keys(self, G: Generator, heads: Heads, cells: int) -> int:
        """Returns how many times the film comes to a key, or to a head. Raises ValueError as `check` does."""
        self.check(G, heads, cells)
        return len(heads.names) // cells if self.what == POSE or self.chains else len(self.keys(G))

    def latents(self, G: Generator, heads: Heads, cells: int, num_frames: int) -> Tensor:
        """Returns latents [F, cells, z_dim] of a film that leads back to its first frame.

        A chain leads through the heads of each cell, and holds the expression of the first one.
        """
        blocks, z = self.blocks(G), heads.z
        assert z is not None
        if self.chains:
            z = z.unflatten(0, (cells, -1))  # [cells, k, z_dim]
            lines = straight(z.transpose(0, 1), num_frames)
            return blocks.put(lines, "expression", blocks.take(z[:, 0], "expression"))
        keys = self.keys(G)
        if not self.fix_subject:
            return blocks.put(z.expand(num_frames, -1, -1), self.what, straight(keys, num_frames)[:, None])
        shifted = torch.stack([keys.roll(-cell, 0) for cell in range(cells)], dim=1)  # [K, cells, n]
        return blocks.put(z[:1].expand(num_frames, cells, -1), self.what, straight(shifted, num_frames))

    def film_ws(self, G: Generator, heads: Heads, cells: int, num_frames: int, ws: Tensor) -> Tensor:
        """Returns ws [F, cells, num_ws, w_dim] of a film on G's device; those given where the camera alone moves."""
        if self.what == POSE:
            return ws
        return along(G, self.latents(G, heads, cells, num_frames), heads.psi)

    def save_grid(self, G: Generator, heads: Heads, look: Look, start: Path, factor: int) -> Path:
        """Writes `grid`, enlarged, beside the film whose name begins with `start`, and returns where."""
        pictures, across = self.grid(G, heads, look)
        path = start.with_name(f"{start.name}-grid.png")
        save_image_grid(pictures, path, across, factor)
        return path

    def grid(self, G: Generator, heads: Heads, look: Look) -> tuple[Tensor, int]:
        """Returns pictures uint8 [N, 3, R, R * panels], a row for every head, and the keys of a row."""
        blocks, keys, z = self.blocks(G), self.keys(G), heads.z
        assert z is not None
        z = z[:1] if self.fix_subject else z
        rows = []
        for head in z:
            ws = along(G, blocks.put(head.expand(len(keys), -1), self.what, keys)[None], heads.psi)[0]
            cameras: Cameras = G.geometry.frontal().reshape(1, 1).expand(len(keys), 1).to(G.device)
            rows.append(render_panels(G, G.synthesis(ws), cameras, look)[:, 0])
        return torch.cat(rows), len(keys)


def read_keys(path: str | Path, count: int) -> Tensor:
    """Reads keys [K, count] from a JSON list of rows. Raises ValueError, with the file's name, for another file."""
    name = f"--key-expressions={path}"
    try:
        content = parse_json(name, Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    rows = content if isinstance(content, list) and content else [None]
    if not all(isinstance(row, list) and len(row) == count for row in rows):
        raise ValueError(f"{name}: legal is [[{count} numbers], ...], one row a key")
    try:
        keys = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: legal are numbers, {count} a row") from None
    if not keys.isfinite().all():
        raise ValueError(f"{name}: numbers must be finite")
    return keys
