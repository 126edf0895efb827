"""Collects the presets of all families in one table."""

from __future__ import annotations

from training.config import TrainingConfig
from training.families import FAMILIES
from training.families.base import Family, Preset


def presets() -> dict[str, tuple[Family, Preset]]:
    """Returns the presets of all families by name, in the families' order."""
    return {name: (family, preset) for family in FAMILIES.values() for name, preset in family.presets.items()}


def resolve(name: str | int, data: str) -> TrainingConfig:
    """Returns the configuration of a preset, by name or by the data's resolution. ValueError lists the legal ones."""
    table = presets()
    if isinstance(name, int):
        by_resolution: dict[int, str] = {}
        for preset_name, (_, preset) in table.items():
            if preset.for_resolution:
                by_resolution.setdefault(preset.generator.resolution, preset_name)
        if name not in by_resolution:
            sizes = ", ".join(map(str, sorted(by_resolution)))
            raise ValueError(f"no preset for images of {name} px; legal are {sizes} (dataset_tool.py can resize)")
        name = by_resolution[name]
    if name not in table:
        raise ValueError(f"unknown preset {name!r}; legal are {', '.join(table)}")
    family, preset = table[name]
    return TrainingConfig(
        family=family.name,
        generator=preset.generator,
        discriminator=preset.discriminator,
        objective=preset.objective,
        preset=name,
        data=data,
        **preset.run,
    )
