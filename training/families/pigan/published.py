"""Reads published pi-GAN files into our classes, and writes their tensors back.

Our modules and parameters carry the published names, so reading is: find the configuration that classes and shapes
tell, then account for every name, shape and type. Nothing is skipped and nothing is filled in. How rays are sampled
stands in no file: it is the curriculum's, which the discriminator tells, and the generator where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from training.families.base import Preset, PublishedFormat, PublishedRun
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.discriminator import ANGLES, Discriminator, DiscriminatorConfig
from training.families.pigan.generator import Generator
from training.families.pigan.presets import PRESETS
from training.published.pickle_file import StoredFile, StoredNetwork
from training.published.state_dicts import (
    check_room,
    check_tensors,
    commonest,
    count_entries,
    lengths,
    shapes_of,
    tensors_of,
)

VARIANTS = {"siren.siren.SPATIALSIRENBASELINE": "spatial", "siren.siren.TALLSIREN": "tall"}
CURRICULA = {"ccs": "pigan-celeba", "strided": "pigan-cats", "progressive": "pigan-carla"}  # kind of D -> preset
_STRIDED, _SMOOTH = "discriminators.sgdiscriminators", "discriminators.discriminators"
DISCRIMINATORS = {
    f"{_STRIDED}.CCSEncoderDiscriminator": "ccs",
    f"{_STRIDED}.CCSDiscriminator": "ccs",
    f"{_STRIDED}.StridedDiscriminator": "strided",
    f"{_SMOOTH}.ProgressiveEncoderDiscriminator": "progressive",
    f"{_SMOOTH}.ProgressiveDiscriminator": "progressive",
}
_PARTS = {
    "generators.generators": ("ImplicitGenerator3d",),
    "siren.siren": ("FiLMLayer", "CustomMappingNetwork", "UniformBoxWarp"),
    _STRIDED: ("AdapterBlock", "ResidualCCBlock", "StridedResidualConvBlock", "CoordConv", "AddCoords"),
    _SMOOTH: ("AdapterBlock", "ResidualCoordConvBlock", "CoordConv", "AddCoords"),
}
FILES = {  # record -> word in the name of its file
    "G": "generator",
    "G_ema": "ema",
    "D": "discriminator",
    "optimizer_G": "optimizer_G",
    "optimizer_D": "optimizer_D",
}
GAUSSIAN_RANGE = 1.645  # standard deviations within which 90 % of a normal law lie


# ---------------------------------------------------------------- state dicts


def from_published(
    tensors: Mapping[str, Tensor], variant: str, preset: str = CURRICULA["ccs"]
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published generator's state dict, with which it shares memory.

    preset: whose rays it was trained with. Raises ValueError that names every unknown or missing tensor, and every
    wrong shape or type.
    """
    shapes = shapes_of(tensors)
    inputs = lengths(shapes, r"siren\.mapping_network\.network\.0\.weight", 1)
    released = PRESETS[preset].generator
    assert isinstance(released, GeneratorConfig)
    config = released.changed(
        variant=variant,
        width=commonest(lengths(shapes, r"siren\.network\.\d+\.layer\.\w+", 0), "the width of siren.network"),
        layers=count_entries(shapes, r"siren\.network\.(\d{1,5})\.layer\.\w+"),
        z_dim=commonest(inputs, "siren.mapping_network.network.0.weight"),
        map_depth=count_entries(shapes, r"siren\.mapping_network\.network\.(\d{1,5})\.\w+") - 1,
        grid="corners",
        last_back=PRESETS[preset].run["background"] == "black",  # as the published scripts have it
    )
    check_tensors(tensors, tensors_of(Generator, config), {})
    return config, dict(tensors)


def discriminator_from_published(
    tensors: Mapping[str, Tensor], kind: str
) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published discriminator, as `from_published` does."""
    shapes = shapes_of(tensors)
    count = count_entries(shapes, r"fromRGB\.(\d{1,2})\.model\.0\.\w+")
    widths = tuple(commonest(lengths(shapes, rf"fromRGB\.{i}\.model\.0\.\w+", 0), f"fromRGB.{i}") for i in range(count))
    outputs = commonest(lengths(shapes, r"final_layer\.\w+", 0), "final_layer")
    try:
        config = DiscriminatorConfig(kind, widths, latent=max(outputs - 1 - ANGLES, 0))
    except ValueError as error:
        raise ValueError(f"not a published discriminator: {error}") from None
    check_tensors(tensors, tensors_of(Discriminator, config), {})
    return config, dict(tensors)


# ---------------------------------------------------------------- files


class PiganPublished(PublishedFormat):
    """Describes the files that the published pi-GAN code writes: one for each network, and one for each average."""

    looks_for = "generator.pth with tensors siren.*, and ema.pth beside it"
    files = FILES
    records = frozenset(FILES)
    classes = frozenset(
        {*VARIANTS, *DISCRIMINATORS, *(f"{module}.{name}" for module, names in _PARTS.items() for name in names)}
    )

    def recognises(self, file: StoredFile) -> bool:
        """Looks for a siren in G."""
        network = file.network("G")
        return network is not None and any(name.startswith("siren.") for name in network.tensors)

    def generator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; the class of the siren tells the variant."""
        siren = stored.modules.get("siren")
        if siren is None or siren.class_name not in VARIANTS:
            found = "none" if siren is None else ascii(siren.class_name)[:80]
            raise ValueError(f"the class of its siren is {found}; legal are {', '.join(VARIANTS)}")
        variant = VARIANTS[siren.class_name]
        return from_published(tensors, variant, _curriculum(None, variant))

    def completed(self, file: StoredFile, generator: GeneratorConfig, stated: Mapping[str, Any]) -> GeneratorConfig:
        """Returns the configuration with the rays of the curriculum that the discriminator tells."""
        network = file.network("D")
        if network is None:
            return generator
        source = PRESETS[_curriculum(_kind_of(network), generator.variant)]
        taken = ("near", "far", "samples", "fine_samples", "unit", "half_width", "noise_kimg")
        return generator.changed(
            **{name: getattr(source.generator, name) for name in taken},
            last_back=source.run["background"] == "black",
        )

    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; the class tells the kind."""
        return discriminator_from_published(tensors, _kind_of(stored))

    def run(
        self, file: StoredFile, generator: GeneratorConfig, discriminator: DiscriminatorConfig | None
    ) -> PublishedRun:
        """Returns the settings of the released curriculum."""
        network = file.network("D")
        name = _curriculum(None if network is None else _kind_of(network), generator.variant)
        preset: Preset = PRESETS[name]
        law = preset.objective.pose_law
        assert law is not None
        spread = law.theta[1]
        sizes = ("width", "layers", "z_dim", "map_depth")
        own = all(getattr(generator, size) == getattr(preset.generator, size) for size in sizes)
        return PublishedRun(
            preset=name if own else "published",
            discriminator=discriminator or preset.discriminator,
            objective=preset.objective,
            geometry=law.geometry,
            yaw_limit=min(GAUSSIAN_RANGE * spread if law.name == "gaussian" else 0.9 * spread, math.pi),
            fields=preset.run,
        )

    def optimizer_record(self, file: StoredFile, network: str) -> str | None:
        """Names the file of the optimiser's state."""
        record = f"optimizer_{network}"
        return record if record in file.records else None

    def optimizer_order(self, parameters: Sequence[str], sizes: Sequence[int]) -> Sequence[str] | None:
        """Returns the parameters in module order, of which the published code makes one group."""
        return parameters if list(sizes) == [len(parameters)] else None

    def to_published(
        self,
        generator: GeneratorConfig,
        discriminator: DiscriminatorConfig,
        networks: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Any]:
        """Returns `variant`, `kind` and the state dicts, whose names are ours."""
        content: dict[str, Any] = {"variant": generator.variant, "kind": discriminator.kind}
        for name, state_dict in networks.items():
            try:
                if name == "D":
                    check_room(discriminator.to_dict(), discriminator.changed(published_keys=True).to_dict())
                    check_tensors(state_dict, tensors_of(Discriminator, discriminator), {})
                else:
                    check_tensors(state_dict, tensors_of(Generator, generator), {})
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            content[name] = dict(state_dict)
        return content


def _kind_of(stored: StoredNetwork) -> str:
    name = stored.modules[""].class_name
    if name not in DISCRIMINATORS:
        raise ValueError(f"the class of its D is {ascii(name)[:80]}; legal are {', '.join(DISCRIMINATORS)}")
    return DISCRIMINATORS[name]


def _curriculum(kind: str | None, variant: str) -> str:
    """Returns the preset that a discriminator of that kind is of; without one, CARLA's is the only one with "tall"."""
    return CURRICULA[kind or ("progressive" if variant == "tall" else "ccs")]


PUBLISHED = PiganPublished()
