"""Published CGS-GAN networks in our classes, and back.

Our modules and parameters carry the names of the published ones, so importing is: find the configuration that the
shapes tell, then account for every name, shape and type. Nothing is skipped and nothing is filled in.

Two generations of the published code exist. The older one hands the same w to every transformer block (`num_ws` is the
number of blocks), the newer one hands out one w: the same function, read as one w. Level 7 is 16 or 8 wide, and a
coarse anchor's log scale starts at -5 or -7: the shapes tell the width, only the source text in a file the scale.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from torch_utils import ops
from training.families.cgs.generator import Generator, GeneratorConfig, published_constants
from training.networks.discriminator import Discriminator, DiscriminatorConfig

Kind = Literal["G", "D"]

NUM_HEADS = 8  # of the published transformer, at every size
RESOLUTION_PER_LEVELS = 3  # a published generator of n levels makes images of 2^(n + 3) px
PUBLISHED_COARSE_SCALE = -5.0  # of the published code as it stands (Barthel et al. 2025)
PUBLISHED_CLAMP = 256.0
CONSTANT_TOLERANCE = 1e-5  # absolute; a published file holds these constants in float32
LONGEST_LIST = 8  # names in a message
MAX_LEVELS = 8  # 2048 px
MAX_RESOLUTION = 2048

_COARSE_SCALE = re.compile(r"\bscale\s{0,8}=\s{0,8}torch\.tensor\(\s{0,80}([-+]?[0-9]{1,4}(?:\.[0-9]{0,20})?)\s{0,80},")


def from_official(
    kind: Kind, tensors: Mapping[str, Tensor], source_text: str = "", coarse_log_scale: float | None = None
) -> tuple[GeneratorConfig | DiscriminatorConfig, dict[str, Tensor]]:
    """The configuration and our state dict of a published generator ("G") or discriminator ("D").

    tensors: the published state dict; sizes are read off its shapes.
    source_text: of the module that defines the published point generator; the coarse start scale is read from it. Empty
        where there is none at hand: then coarse_log_scale decides, and the published code's -5 without it.
    coarse_log_scale: ln of world units; beats the source text.
    The state dict shares memory with `tensors`. Raises ValueError that names every unknown or missing tensor, every
    wrong shape or type, and every constant that does not fit the sizes; and for a source text without one start scale.
    """
    _check_kind(kind)
    if not_tensors := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{kind}: not a tensor: {_listed(not_tensors)}")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    config: GeneratorConfig | DiscriminatorConfig
    if kind == "G":
        if coarse_log_scale is None:
            coarse_log_scale = coarse_scale_in(source_text) if source_text else PUBLISHED_COARSE_SCALE
        config = _generator_config(shapes, coarse_log_scale)
    else:
        config = _discriminator_config(shapes)
    _check_tensors(kind, config, tensors)
    return config, dict(tensors)


def to_official(
    kind: Kind, config: GeneratorConfig | DiscriminatorConfig, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The published state dict of one of our networks, sharing memory with ours; inverse of `from_official`.

    The coarse start scale is not among the tensors; pass `config.coarse_log_scale` on to whoever reads them.
    Raises ValueError for a network that the published layout cannot hold, and as `from_official` does for its tensors.
    """
    _check_kind(kind)
    if not isinstance(config, GeneratorConfig if kind == "G" else DiscriminatorConfig):
        raise ValueError(f"{kind}: its configuration is a {type(config).__name__}")
    legal = dataclasses.replace(config, published_keys=True)
    if isinstance(legal, GeneratorConfig):
        resolution = 2 ** (legal.num_levels + RESOLUTION_PER_LEVELS)
        legal = dataclasses.replace(
            legal, resolution=resolution, num_heads=NUM_HEADS, point_encoding="fourier+table", camera_embedding=True
        )
    ours, theirs = config.to_dict(), legal.to_dict()
    if differences := [f"{name} = {ours[name]} (legal: {theirs[name]})" for name in ours if ours[name] != theirs[name]]:
        raise ValueError(f"{kind}: the published layout has no room for {'; '.join(differences)}")
    _check_tensors(kind, config, state_dict)
    return dict(state_dict)


def coarse_scale_in(source_text: str) -> float:
    """Where a coarse anchor's log scale starts, from the source of the published point generator, which is not run.

    Raises ValueError where the text holds no such number, or several that differ.
    """
    values = {float(number) for number in _COARSE_SCALE.findall(source_text)}
    if len(values) != 1:
        found = f"several coarse start scales ({sorted(values)[:4]})" if values else "no coarse start scale"
        raise ValueError(
            f"its source text holds {found}; state it with convert_checkpoint.py --coarse-scale (published: -5 or -7)"
        )
    return values.pop()


@functools.lru_cache(maxsize=8)
def _expected(config: GeneratorConfig | DiscriminatorConfig) -> dict[str, Tensor]:
    """Name -> tensor without memory, of the right shape and type."""
    return network_of(config).state_dict()


def network_of(config: GeneratorConfig | DiscriminatorConfig) -> nn.Module:
    """The network without memory for its tensors."""
    with torch.device("meta"):
        return Generator(config) if isinstance(config, GeneratorConfig) else Discriminator(config)


# ---------------------------------------------------------------- the configuration that the shapes tell


def _generator_config(shapes: Mapping[str, tuple[int, ...]], coarse_log_scale: float) -> GeneratorConfig:
    heads = r"point_gen\.(?:anchors|gaussians)\.\w+"
    levels = _count(shapes, rf"{heads}\.(\d+)\.\w+")
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"G: not a published generator: it has heads for {levels} levels, legal are 2 to {MAX_LEVELS}")
    widths = tuple(
        _usual(_axis(shapes, rf"{heads}\.{level}\.weight", 1), f"G: the width of level {level}")
        for level in range(levels)
    )
    rows = [
        _usual(
            _axis(shapes, rf"point_gen\.upsample_layers\.{level}\.subpixel\.(?:weight|bias)", 0),
            f"G: point_gen.upsample_layers.{level}.subpixel.weight",
        )
        for level in range(levels)
    ]
    children = [row // width for row, width in zip(rows, widths, strict=True)]
    if 0 in children:
        raise ValueError("G: a point_gen.upsample_layers.*.subpixel has fewer rows than its level is wide")
    ratios = tuple(a // b for a, b in zip(children, [1, *children], strict=False))
    w_dim = _usual(_axis(shapes, r"point_gen\.transformer\.\w+\.\d+\.ln_\d\.\w+\.weight", 1), "G: the width of w")
    latent = _usual(_axis(shapes, r"mapping_network\.fc0\.weight", 1), "G: mapping_network.fc0.weight")
    first_blocks = _count(shapes, r"point_gen\.transformer\.first_layers\.(\d+)\..*")
    if not first_blocks or latent <= w_dim:
        raise ValueError(f"G: not a published generator: {first_blocks} first layers, a latent of {latent - w_dim}")
    try:
        return GeneratorConfig(
            resolution=2 ** (levels + RESOLUTION_PER_LEVELS),
            z_dim=latent - w_dim,
            w_dim=w_dim,
            num_points=_usual(_axis(shapes, "_xyz", 0), "G: _xyz"),
            ratios=ratios,
            widths=widths,
            first_blocks=first_blocks,
            num_heads=NUM_HEADS,
            map_depth=_count(shapes, r"mapping_network\.fc(\d+)\.\w+"),
            coarse_log_scale=coarse_log_scale,
        )
    except ValueError as error:
        raise ValueError(f"G: not a published generator: {error}") from None


def _discriminator_config(shapes: Mapping[str, tuple[int, ...]]) -> DiscriminatorConfig:
    firsts = (re.fullmatch(r"b(\d{1,4})\.fromrgb\.\w+", name) for name in shapes)
    resolution = _usual([int(m[1]) for m in firsts if m], "D: its first block (b*.fromrgb)")
    if resolution > MAX_RESOLUTION:
        raise ValueError(f"D: not a published discriminator: {resolution} px, legal are up to {MAX_RESOLUTION}")
    sizes = [resolution >> i for i in range(resolution.bit_length() - 3)]
    channels = [
        _usual(_axis(shapes, rf"b{size}\.conv0\.(?:weight|bias)", 0), f"D: b{size}.conv0.weight") for size in sizes
    ]
    channels.append(_usual(_axis(shapes, r"b4\.conv\.(?:weight|bias)", 0), "D: b4.conv.weight"))
    try:
        return DiscriminatorConfig(
            resolution=resolution,
            channels=tuple(channels),
            embedding_dim=_usual(_axis(shapes, r"mapping\.\w+\.(?:weight|bias)", 0), "D: the width of its mapping"),
            mapping_depth=max(_count(shapes, r"mapping\.fc(\d+)\.\w+"), 1),
            conv_clamp=PUBLISHED_CLAMP,
        )
    except ValueError as error:
        raise ValueError(f"D: not a published discriminator: {error}") from None


def _axis(shapes: Mapping[str, tuple[int, ...]], pattern: str, axis: int) -> list[int]:
    """One length of every tensor whose name fits."""
    return [shape[axis] for name, shape in shapes.items() if re.fullmatch(pattern, name) and len(shape) > axis]


def _usual(values: Iterable[int], what: str) -> int:
    """The commonest value, so that one wrong tensor is called wrong and not all others."""
    counted = Counter(values)
    if not counted:
        raise ValueError(f"missing or of a wrong shape: {what}")
    return counted.most_common(1)[0][0]


def _count(names: Iterable[str], pattern: str) -> int:
    """How many entries a numbered list has: the commonest count over the tensors of an entry, else the largest."""
    entries: dict[str, set[str]] = {}
    for name in names:
        if found := re.fullmatch(pattern, name):
            family = name[: found.start(1)] + "#" + name[found.end(1) :]
            entries.setdefault(family, set()).add(found[1])
    counted = Counter(len(numbers) for numbers in entries.values())
    return max(counted, key=lambda length: (counted[length], length), default=0)


# ---------------------------------------------------------------- every name, shape, type and constant


def _check_kind(kind: str) -> None:
    if kind not in ("G", "D"):
        raise ValueError(f"kind={kind!r}; legal are 'G' and 'D'")


def _check_tensors(kind: Kind, config: GeneratorConfig | DiscriminatorConfig, tensors: Mapping[str, Tensor]) -> None:
    expected = _expected(config)
    found: list[str] = []
    if unknown := sorted(set(tensors) - set(expected)):
        found.append(f"unknown: {_listed(unknown)}")
    if missing := sorted(set(expected) - set(tensors)):
        found.append(f"missing: {_listed(missing)}")
    both = [name for name in expected if name in tensors]
    shapes = [n for n in both if tensors[n].shape != expected[n].shape]
    if shapes:
        found.append(
            "wrong shape: " + _listed([f"{n} {list(tensors[n].shape)} for {list(expected[n].shape)}" for n in shapes])
        )
    if types := [n for n in both if tensors[n].dtype != expected[n].dtype]:
        found.append("wrong type: " + _listed([f"{n} {tensors[n].dtype} for {expected[n].dtype}" for n in types]))
    if not found and (constants := _wrong_constants(config, tensors)):
        found.append(f"wrong constant: {_listed(constants)}")
    if found:
        raise ValueError(f"{kind}: {'; '.join(found)}")


def _wrong_constants(config: GeneratorConfig | DiscriminatorConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """Buffers that no training changes and that the formulas replace by the configuration, where they say otherwise."""
    if isinstance(config, GeneratorConfig):
        constants = {f"point_gen.{name}": value for name, value in published_constants(config).items()}
    else:
        constants = {name: ops.fir_filter() for name in tensors if name.endswith("resample_filter")}
    wrong = []
    for name, value in constants.items():
        error = (tensors[name].double() - value.double()).abs().max().item()
        if not error <= CONSTANT_TOLERANCE:  # NaN too
            wrong.append(f"{name} is off by {error:.3g}")
    return wrong


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LONGEST_LIST} more" if len(names) > LONGEST_LIST else ""
    return ", ".join(names[:LONGEST_LIST]) + more
