"""Moves heads to and fro along directions of w: films, and grids of pictures beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.families.base import Generator
from training.visualization.directions import read_directions
from training.visualization.grids import save_image_grid
from training.visualization.latents import Heads, still_ws
from training.visualization.video import Look, render_panels

GRID_STEPS = 5  # pictures of a head and a direction, from one end to the other


@dataclass(frozen=True)
class Sweep:
    """Says along which directions heads are moved, and how far. Has what films ask of a `Control`."""

    file: str
    name: str | None  # None: all of the file, one after the other
    amount: float  # standard deviations

    path = "still"  # the camera's, where none was asked for

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """Reads FILE:amount, or FILE:NAME:amount. Raises ValueError for other text."""
        file, _, last = text.rpartition(":")
        try:
            amount = float(last)
        except ValueError:
            amount = math.nan
        if not file or not math.isfinite(amount):
            raise ValueError("legal is FILE:AMOUNT or FILE:NAME:AMOUNT, an amount in standard deviations")
        if ":" not in file or Path(file).is_file():
            return cls(file, None, amount)
        file, _, name = file.rpartition(":")
        return cls(file, name, amount)

    @property
    def what(self) -> str:
        """The sweep's part of the film's file name."""
        return self.name or Path(self.file).stem

    def steps(self, G: Generator) -> Tensor:
        """Returns the steps to the ends [D, w_dim] on G's device. Raises ValueError as `read_directions` does."""
        found = read_directions(self.file, G)
        names = found.names if self.name is None else (self.name,)
        try:
            return self.amount * torch.stack([found.step(name) for name in names]).to(G.device)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from None

    def moved(self, G: Generator, ws: Tensor) -> Tensor:
        """Returns ws [B, num_ws, w_dim] moved by the amount. Raises ValueError where the direction is not named."""
        steps = self.steps(G)
        if len(steps) > 1:
            raise ValueError(f"{self.file} holds several directions; give {self.file}:NAME:{self.amount:g}")
        return ws + steps[0].to(ws)

    def num_keys(self, G: Generator, heads: Heads, cells: int) -> int:
        """Returns how many times a cell's head is moved to and fro."""
        return len(heads.names) // cells * len(self.steps(G))

    def film_ws(self, G: Generator, heads: Heads, cells: int, num_frames: int, ws: Tensor) -> Tensor:
        """Returns ws [F, cells, num_ws, w_dim] of a film on G's device, whatever `ws` the film would have without.

        Head after head of a cell, direction after direction: to the amount, to its opposite and back, as a sine.
        """
        keys = still_ws(G, heads).unflatten(0, (cells, -1)).transpose(0, 1)  # [K, cells, num_ws, w_dim]
        steps = self.steps(G).to(keys)
        place = torch.arange(num_frames, dtype=torch.float64) * (len(keys) * len(steps) / num_frames)
        part = place.long().to(keys.device)
        waves = torch.sin(2 * torch.pi * place).to(keys)[:, None] * steps[part % len(steps)]  # [F, w_dim]
        return keys[part // len(steps)] + waves[:, None, None]

    def save_grid(self, G: Generator, heads: Heads, look: Look, start: Path, factor: int) -> Path:
        """Writes `grid`, enlarged, beside the film whose name begins with `start`, and returns where."""
        path = start.with_name(f"{start.name}-grid.png")
        save_image_grid(self.grid(G, heads, look), path, GRID_STEPS, factor)
        return path

    def grid(self, G: Generator, heads: Heads, look: Look) -> Tensor:
        """Returns pictures uint8 [N, 3, R, R * panels] from the front: a row for every direction of every head.

        From left to right a head is moved from the opposite of the amount to the amount.
        """
        shares = torch.linspace(-1, 1, GRID_STEPS, device=G.device)
        cameras = G.geometry.frontal().reshape(1, 1).expand(GRID_STEPS, 1).to(G.device)
        rows = []
        for head in still_ws(G, heads):
            for step in self.steps(G):
                ws = head + (shares[:, None] * step)[:, None]  # [GRID_STEPS, num_ws, w_dim]
                rows.append(render_panels(G, G.synthesis(ws), cameras, look)[:, 0])
        return torch.cat(rows)
