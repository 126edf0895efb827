"""Describes a training run in one typed record, which is written beside the run with every value resolved."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, fields
from typing import Any

import dnnlib
from training.averages import check_lengths
from training.families import DEFAULT_FAMILY, family
from training.families.base import DiscriminatorConfig, Family, GeneratorConfig, ObjectiveConfig
from training.records import Record
from training.samples import Stage

NESTED = ("generator", "discriminator", "objective")  # fields that are records of the family's own


@dataclass(frozen=True)
class TrainingConfig:
    """Holds everything that decides the numbers of a run."""

    family: str  # name in training.families.FAMILIES
    generator: GeneratorConfig  # network that makes scenes
    discriminator: DiscriminatorConfig  # network that judges images
    objective: ObjectiveConfig  # losses and optimisers
    preset: str  # name of the preset that the values started from
    data: str  # folder of the images
    index_list: str | None = None  # JSON list of item numbers
    mirror: bool = True  # flips image, mask and camera of every second sample
    background: str = "random"  # behind real and fake: "random" (per sample), "white", "black" or "R,G,B" in 0..1
    seed: int = 0  # everything random follows from it

    # Schedule
    total_kimg: float = 15000.0  # length of the run in thousands of real images
    tick_kimg: float = 1.0  # thousands of images between two status lines
    image_ticks: int = 50  # ticks between two pictures
    snapshot_ticks: int = 500  # ticks between two checkpoints
    batch: int = 32  # samples per step, over all ranks
    batch_gpu: int = 8  # samples per micro-batch
    ema_kimg: tuple[float, ...] = ()  # half-lives of further averages of G, in thousands of images
    stages: tuple[Stage, ...] = ()  # parts of the run with a batch, resolution and rates of their own, in order

    # Optimisation
    g_lr: float = 0.0025  # learning rate of the generator
    d_lr: float = 0.002  # learning rate of the discriminator, before any correction for lazy regularisation
    cooldown_kimg: float = 0.0  # the last thousands of images, over which both rates fall to 0
    freeze_d: int = 0  # layers of D, from the image on, that do not learn
    label_noise: float = 0.0  # noise on the cameras that D is told, in standard deviations of the data's labels

    # Machine and measuring
    precision: str = "auto"  # number format of the convolutions and large products
    compile: bool = False  # G's synthesis and D, where first derivatives suffice, go through PyTorch's compiler
    rasterizer: str = "auto"  # back end of the splatting
    metrics: tuple[str, ...] = ("fid20k_full",)  # measured at every checkpoint
    detector: str | None = None  # weights of the 2015 Inception network
    detector_vgg: str | None = None  # weights of the VGG-16 network
    max_bad_steps: int = 10  # skipped steps in a row after which the run stops

    @property
    def shown_background(self) -> str:
        """The colour behind pictures, films and metrics: the one of training, white where that is random."""
        return "white" if self.background == "random" else self.background

    @property
    def resolution(self) -> int:
        """Pixels of the images at the end of the run."""
        return self.generator.resolution

    def stage_at(self, nimg: int) -> Stage:
        """Returns the part of the run in which the step after `nimg` images lies."""
        started = [stage for stage in self.stages if stage.from_nimg <= nimg]
        return started[-1] if started else self._whole

    def lr_factor(self, nimg: int) -> float:
        """Returns the share of the learning rates with which the step after `nimg` images is taken.

        It is 1, and falls linearly to 0 over the last `cooldown_kimg` of the run (Haegele et al. 2024, "Scaling laws
        and compute-optimal training beyond fixed training durations").
        """
        if not self.cooldown_kimg:  # a step after the last image, as of a benchmark, has whole rates too
            return 1.0
        return min(max(self.total_kimg - nimg / 1000, 0.0) / self.cooldown_kimg, 1.0)

    @property
    def _whole(self) -> Stage:
        """The run as one stage."""
        return Stage(0, self.resolution, self.batch, self.batch_gpu, self.g_lr, self.d_lr)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-able values: only dicts, lists, strings, numbers, booleans and None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _jsonable(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Inverts `to_dict`. Raises ValueError naming an unknown or missing field."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"training configuration: unknown field {', '.join(unknown)}")
        if missing := sorted({"family", *NESTED, "preset", "data"} - set(values)):
            raise ValueError(f"training configuration: missing field {', '.join(missing)}")
        if not isinstance(values["family"], str):
            raise ValueError(f"training configuration: {values['family']!r} is no name of a family")
        types = record_types(family(values["family"]))
        nested = {name: kind.from_dict(values[name]) for name, kind in types.items()}
        stages = tuple(Stage.from_dict(stage) for stage in values.get("stages", ()))
        lists: dict[str, Any] = {name: tuple(values.get(name, ())) for name in ("metrics", "ema_kimg")}
        return cls(**{**values, **nested, "stages": stages, **lists})

    def check(self, ranks: int = 1) -> None:
        """Raises ValueError with a line a user can act on if options contradict each other."""
        for flag, count, least in (
            ("--seed", self.seed, 0),
            ("--batch-gpu", min([self.batch_gpu, *(stage.batch_gpu for stage in self.stages)]), 1),
            ("--img-snap", self.image_ticks, 1),
            ("--network-snap", self.snapshot_ticks, 1),
            ("--max-bad-steps", self.max_bad_steps, 1),
        ):
            if count < least:
                raise ValueError(f"{flag}={count}: must be {least} or greater")
        for flag, value in (
            ("--kimg", self.total_kimg),
            ("--tick", self.tick_kimg),
            ("--glr", self.g_lr),
            ("--dlr", self.d_lr),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and greater than 0")
        check_lengths("--ema", self.ema_kimg)
        if not 0 <= self.cooldown_kimg <= self.total_kimg:
            raise ValueError(f"--cooldown-kimg={self.cooldown_kimg}: legal are 0 to --kimg, {self.total_kimg:g}")
        if not 0 <= self.label_noise < math.inf:
            raise ValueError(f"--disc-c-noise={self.label_noise}: must be finite and 0 or greater")
        layers = self.discriminator.num_freezable
        if not 0 <= self.freeze_d <= layers:
            raise ValueError(f"--freezed={self.freeze_d}: legal are 0 to {layers}, the discriminator's layers")
        if self.background != "random":
            dnnlib.parse_color(self.background)
        self.objective.check(self)
        judged = getattr(self.discriminator, "resolution", self.resolution)
        if judged != self.resolution:
            raise ValueError(f"discriminator.resolution={judged}: the generator makes images of {self.resolution} px")
        # Last, as --batch-gpu shrinks in search of a value that passes all checks: what it cannot mend is said first.
        self._check_batch("--batch", self._whole, ranks)
        for stage in self.stages:
            self._check_stage(stage, ranks)

    def _check_batch(self, flag: str, stage: Stage, ranks: int) -> None:
        share = ranks * stage.batch_gpu
        if stage.batch <= 0 or stage.batch % share:
            shares = f"--gpus x --batch-gpu = {ranks} x {stage.batch_gpu} = {share}"
            raise ValueError(f"{flag}={stage.batch} is not a multiple of {shares}")
        views = len(self.objective.views)
        if self.objective.paired and stage.batch_gpu % views:
            raise ValueError(
                f"--batch-gpu={stage.batch_gpu} is not a multiple of the {views} views of a scene, whose "
                "real images must be at hand where real and generated ones are paired"
            )
        group = self.discriminator.minibatch_std_group
        if group > 1 and stage.batch_gpu % group:
            raise ValueError(f"--batch-gpu={stage.batch_gpu} is not a multiple of the minibatch-std group of {group}")

    def _check_stage(self, stage: Stage, ranks: int) -> None:
        where = f"the stage from {stage.from_nimg} images on"
        self._check_batch(f"{where}: batch", stage, ranks)
        if stage.from_nimg < 0 or [s.from_nimg for s in self.stages] != sorted({s.from_nimg for s in self.stages}):
            raise ValueError(f"{where}: stages must begin one after the other, at 0 images or later")
        if stage.resolution < 1 or self.resolution % stage.resolution:
            raise ValueError(f"{where}: {stage.resolution} px is no whole fraction of {self.resolution} px")
        if not (0 < stage.g_lr < math.inf and 0 < stage.d_lr < math.inf):
            raise ValueError(f"{where}: learning rates must be finite and greater than 0")


def record_types(of: Family) -> dict[str, type[Record]]:
    """Returns the classes of the nested records of a family, by field."""
    return {
        "generator": of.generator_config,
        "discriminator": of.discriminator_config,
        "objective": of.objective_config,
    }


def settable(of: Family) -> dict[str, Any]:
    """Returns the types of all values of a configuration that a command line may set, by dotted name."""
    types, hints = record_types(of), typing.get_type_hints(TrainingConfig)
    fixed = {"family", "preset", "data", "index_list", "background", "stages", *NESTED}
    own = {f.name: hints[f.name] for f in fields(TrainingConfig) if f.name not in fixed}
    nested = {f"{owner}.{name}": kind for owner, record in types.items() for name, kind in record.field_types().items()}
    return own | nested


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Turns a configuration of checkpoint format 1, which knew CGS-GAN alone, into one of format 2."""
    objective = {f.name for f in dataclasses.fields(family(DEFAULT_FAMILY).objective_config)}  # type: ignore[arg-type]
    common = {name: value for name, value in values.items() if name not in objective}
    nested = {name: value for name, value in values.items() if name in objective}
    return {"family": DEFAULT_FAMILY, **common, "objective": nested, "stages": []}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Record):
        return _jsonable(value.to_dict())
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value
