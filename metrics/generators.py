"""Says what a metric asks of a generator. Every `training.families.base.Generator` gives it, and so does a toy.

Metrics import no family, so that measuring the images of another program needs none of them either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gaussian import Cameras, Rendering


class TrainingFacts(Protocol):
    """What a metric reads of the run that made a generator; `training.families.base.CheckpointInfo` is one."""

    @property
    def config(self) -> Mapping[str, Any]: ...  # the run's resolved configuration; "background" is "random" or a colour
    @property
    def background(self) -> str: ...  # the colour that metrics use unless another is asked for


class Generator(Protocol):
    """Maps latents to scenes and renders scenes."""

    @property
    def z_dim(self) -> int: ...
    @property
    def resolution(self) -> int: ...  # pixels of an image
    @property
    def num_classes(self) -> int: ...  # of scenes; if there are any, `mapping` is told `classes` [B] int64 too
    @property
    def device(self) -> torch.device: ...
    @property
    def info(self) -> TrainingFacts | None: ...  # None: of no run
    @property
    def blocks(self) -> Any: ...  # named parts of a latent, `training.control.blocks.Blocks`; None: there are none
    def reader(self) -> tuple[Callable[[Tensor], Mapping[str, Tensor]], str]: ...  # of blocks, off images in -1..1
    def asked_depth(self, z: Tensor, cameras: Cameras, resolution: int) -> Tensor: ...  # of blocks: camera z [B, R, R]
    def mapping(self, z: Tensor, cameras: Cameras | None = None) -> Tensor: ...  # z [B, z_dim], cameras [B]
    def synthesis(self, ws: Tensor) -> Any: ...  # a scene of the generator's own kind
    def render(self, scene: Any, cameras: Cameras, *, background: Tensor | None = None) -> Rendering: ...  # [B, V]
