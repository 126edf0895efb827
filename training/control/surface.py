"""Joins a morphable model to a generator: the surface that a latent's blocks ask for, and what cameras see of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gaussian import Cameras
from training.control.blocks import Blocks
from training.control.regressor import regressor_for
from training.morphable.model import MODEL_BLOCKS, SHAPE_BLOCKS, MorphableModel
from training.morphable.rasterize import Fragments, Painting, paint, rasterize

SAMPLES = 2  # rows and columns of rays in a pixel whose colour is compared
KEY = "morphable_key"  # buffer that says which model weights were trained with


class Surface:
    """Gives the surfaces of a model where and as they are needed. It is no part of a module's state."""

    def __init__(self, model: MorphableModel, blocks: Blocks):
        self.morphable, self.blocks = model, blocks
        self._models: dict[tuple[torch.device, torch.dtype], MorphableModel] = {}

    @property
    def size(self) -> int:
        """Numbers of the blocks that the shape follows from."""
        return sum(self.morphable.sizes[name] for name in SHAPE_BLOCKS)

    def model(self, like: Tensor) -> MorphableModel:
        """Returns the morphable model on a tensor's device, in its type."""
        place = like.device, like.dtype
        if place not in self._models:
            self._models[place] = self.morphable.to(like)
        return self._models[place]

    def shape(self, z: Tensor) -> Tensor:
        """Returns the blocks of the shape [B, I + E] of latents [B, z_dim]."""
        return torch.cat([self.blocks.take(z, name) for name in SHAPE_BLOCKS], dim=1)

    def vertices(self, shape: Tensor) -> Tensor:
        """Returns the vertices [B, V, 3], world units, of surfaces whose blocks are [B, I + E]. Differentiable."""
        model = self.model(shape)
        identity, expression = shape.split([model.sizes[name] for name in SHAPE_BLOCKS], dim=1)
        return model.vertices(model.coefficients("identity", identity), model.coefficients("expression", expression))

    def landmarks(self, shape: Tensor) -> Tensor:
        """Returns the landmarks [B, L, 3] of surfaces whose blocks are [B, I + E]. Differentiable."""
        return self.vertices(shape)[:, self.model(shape).landmarks]

    def drawn(self, vertices: Tensor, cameras: Cameras, size: tuple[int, int]) -> Fragments:
        """Draws vertices [B, V, 3] from cameras [B] at size (height, width). On a GPU nothing waits."""
        triangles = self.model(vertices).triangles
        ample = len(vertices) * (2 * len(triangles) + 12 * size[0] * size[1])
        return rasterize(vertices, triangles, cameras, size, ample if vertices.device.type != "cpu" else None)

    def painted(self, z: Tensor, cameras: Cameras, size: tuple[int, int], samples: int = SAMPLES) -> Painting:
        """Returns what cameras [B, V] see of the surfaces that latents [B, z_dim] ask for, [B V ...] images.

        Values are lit colours in -1..1. size: height and width. On a GPU nothing waits.
        """
        model = self.model(z)
        known = {block: model.coefficients(block, self.blocks.take(z, block)) for block in MODEL_BLOCKS}
        vertices = model.vertices(known["identity"], known["expression"])
        colours = 2 * model.looks(vertices, known["texture"], known["illumination"]) - 1
        vertices, colours = (values.repeat_interleave(cameras.shape[1], dim=0) for values in (vertices, colours))
        found = self.drawn(vertices, cameras.reshape(len(vertices)), (samples * size[0], samples * size[1]))
        return paint(found, model.triangles, colours, samples)

    def reader(self, device: torch.device) -> tuple[Callable[[Tensor], Mapping[str, Tensor]], str]:
        """Returns the regressor of the model; see `Controllable.reader`."""
        otherwise = "copy the file there that its --dest names"
        return regressor_for("", self.morphable, otherwise).to(device).blocks, self.morphable.key

    def bind(self, module: nn.Module) -> None:
        """Lets a module's weights name the model, and refuse another one: ValueError as they are loaded."""
        own = torch.tensor(list(bytes.fromhex(self.morphable.key)), dtype=torch.uint8, device="cpu")
        module.register_buffer(KEY, own.to(torch.get_default_device()))

        def check(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
            found = state.get(prefix + KEY)
            if found is not None and not torch.equal(found.cpu(), own):
                raise ValueError(
                    f"the weights were trained with the morphable model {bytes(found.tolist()).hex()}, and the one at "
                    f"hand is {self.morphable.key}"
                )

        module.register_load_state_dict_pre_hook(check)
