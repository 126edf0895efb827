"""Defines what a family of generators gives to the rest of the framework. `docs/new-family.md` shows a whole one.

Everything outside of `training/families/` is written against these classes: the loop, checkpoints, metrics, films.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from gaussian import Cameras, Geometry, Rendering
from gaussian.scene import Scene
from torch_utils.random import Draws
from training.control.blocks import Controllable
from training.data.poses import PoseLaw
from training.families.inspection import Inspect, inspect_splats
from training.networks.base import Conditioning, Discriminator, DiscriminatorConfig, DiscriminatorOutput
from training.published.pickle_file import StoredFile, StoredNetwork
from training.records import Record
from training.samples import MicroBatch, RunConfig, Stage

__all__ = [  # the discriminator's classes come from training.networks.base
    "AT_REST", "Alarm", "CheckpointInfo", "Conditioning", "Discriminator", "DiscriminatorConfig",
    "DiscriminatorOutput", "Family", "Generator", "GeneratorConfig", "Loss", "Objective", "ObjectiveConfig", "Option",
    "Phase", "Preset", "RunFields", "StepContext",
]  # fmt: skip

# ---------------------------------------------------------------- networks


@dataclass(frozen=True)
class StepContext:
    """Says where in a run a network is called. Schedules are functions of it, so that forward calls stay pure."""

    nimg: int | None = None  # images seen before the step; None at rest (metrics, films): no fades and no noise
    draws: Draws | None = None  # random numbers of the samples at hand; None at rest
    classes: Mapping[str, Tensor] = field(default_factory=dict)  # theirs, as `MicroBatch.classes`


AT_REST = StepContext()
W_AVG_DECAY = 0.998  # of the running mean of w, per `Generator.w_avg_batch` images


@dataclass(frozen=True)
class CheckpointInfo:
    """Holds what a trained generator knows of its run and its data."""

    config: Mapping[str, Any]  # the run's resolved configuration as plain values
    geometry: Geometry  # of the data, in model units
    yaw_limits: tuple[float, float]  # radians; the 5th and 95th percentile of the data's cameras
    background: str  # behind pictures, films and metrics: "white", "black" or "R,G,B" in 0..1


class GeneratorConfig(Record):
    """Describes a generator. Families derive frozen dataclasses from it."""

    resolution: int  # pixels of the images
    z_dim: int  # numbers of a latent

    def check_cameras(self, cameras: Cameras) -> None:
        """Raises ValueError, with the option's name, if the generator cannot show what cameras [N] of a set see."""


class Generator(Controllable, nn.Module, abc.ABC):
    """Maps latents to scenes and renders scenes. No call changes the module; only `update_average` does."""

    z_dim: int  # numbers of a latent
    w_dim: int  # numbers of a w
    num_ws: int = 1  # ws per scene
    num_classes: int = 0  # of scenes; if there are any, `mapping` has a last argument `classes` [B] int64, None at will
    block_ws: int = 0  # ws that `synthesis` takes as well, one for each of its parts; 0: num_ws are these
    resolution: int  # pixels of an image
    makes_splats: bool = True  # its scenes are `gaussian.Splats`: .ply files and views of the splats exist
    has_background: bool = False  # its scenes have a background of their own, which their `foreground()` leaves out
    colors_follow_view: bool = False  # a splat's colour depends on where it is seen from
    mapping_follows_camera: bool = False  # `mapping` heeds the cameras that it is told
    w_avg_buffer: str = ""  # name of the buffer [w_dim] with the running mean of w, the truncation centre; "": none
    w_avg_batch: int = 8  # images in which that mean keeps W_AVG_DECAY of its past
    rasterizer: str = "auto"  # back end of `gaussian.render`; set by the owner
    low_dtype: torch.dtype | None = None  # of large matrix products, set by the owner; None is the parameters' type
    info: CheckpointInfo | None = None  # set by the owner

    @abc.abstractmethod
    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim], pulled towards the mean w by psi (0: the mean itself).

        cameras: [B], those that the family conditions on; families that condition on none ignore them.
        """

    @abc.abstractmethod
    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> Scene:
        """Makes scenes from ws [B, num_ws, w_dim]. Raises ValueError for another shape."""

    @abc.abstractmethod
    def render(
        self,
        scene: Any,  # what `synthesis` returned
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,
    ) -> Rendering:
        """Renders scenes in float32. Training, metrics and scripts all render through this."""

    @property
    def w_avg(self) -> Tensor:
        """The running mean of w [w_dim], of a generator that names its buffer."""
        return self.get_buffer(self.w_avg_buffer)

    @torch.no_grad()
    def update_average(self, mean_ws: Tensor, batch: int) -> None:
        """Moves the truncation centre, if any, towards the first of mean_ws [num_ws, w_dim], means of `batch` samples.

        Styles may be mixed in the other rows. The decay is 0.998^(batch / w_avg_batch).
        """
        if self.w_avg_buffer:
            self.w_avg.lerp_(mean_ws[0].to(self.w_avg.dtype), 1 - W_AVG_DECAY ** (batch / self.w_avg_batch))

    def scene_size(self) -> str:
        """Says how large a scene is, for people: "5,440 splats"."""
        return "a scene of its own kind"

    @property
    def scene_numbers(self) -> int:
        """Counts the splats, or values of like cost, of a scene: bounds how many are synthesised at once."""
        return 1

    @property
    def geometry(self) -> Geometry:
        """The geometry of the data, in model units. Raises ValueError for a generator that comes from no run."""
        if self.info is None:
            raise ValueError("this generator has no geometry: it comes from no checkpoint and no run")
        return self.info.geometry

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, z: Tensor, cameras: Cameras, psi: float = 1.0, background: Tensor | None = None) -> Rendering:
        """Renders z [B, z_dim] from cameras [B, V] at the generator's resolution, conditioned on the first view."""
        return self.render(self.synthesis(self.mapping(z, cameras[:, 0], psi)), cameras, background=background)


# ---------------------------------------------------------------- objectives


@dataclass(frozen=True)
class Loss:
    """Holds one term to go back through. The engine goes back through its sum over samples / total batch."""

    total: Tensor  # [b] per sample
    report: Mapping[str, Tensor]  # statistics by name, any shape; their means are logged
    ws: Tensor | None = None  # [b, num_ws, w_dim] whose mean moves the truncation centre


@dataclass
class Phase:
    """Describes a unit of GAN work: which module learns, how often, and what a micro-batch adds to its gradient."""

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    every: int  # steps
    clip: float  # largest norm of the mean gradient over the total batch
    losses: Callable[[MicroBatch, StepContext], Iterator[Loss]]  # each goes back before the next is asked for
    frozen: Sequence[nn.Module] = ()  # parts of the module that do not learn
    learning: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        frozen = {id(p) for part in self.frozen for p in part.requires_grad_(False).parameters()}
        self.learning = [p for p in self.module.parameters() if id(p) not in frozen]


class ObjectiveConfig(Record):
    """Describes losses and optimisers. Families derive frozen dataclasses from it."""

    @property
    def views(self) -> range:
        """Offsets v: scene b is seen from the camera of sample (b - v) mod batch, once for each."""
        return range(1)

    @property
    def paired(self) -> bool:
        """Whether every generated image has the camera of a real one at hand: `training.samples.paired`."""
        return False

    @property
    def pose_law(self) -> PoseLaw | None:
        """The law of the cameras, for sets whose cameras nobody knows; None: cameras are those of the set's labels."""
        return None

    @property
    def whole_step(self) -> bool:
        """Whether losses look at the cameras of all samples of a step: `training.samples.WholeStep`."""
        return False

    @property
    def tells_classes(self) -> bool:
        """Whether networks are told the classes of images: `num_classes` of their records is then the data's."""
        return False

    def check(self, config: RunConfig) -> None:
        """Raises ValueError, with the option's name, for values that contradict each other or the run's."""


class Objective(Protocol):
    """Puts the losses of a family over its networks. Built from (configuration, G, D)."""

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Returns the optimisers by the names that they have in checkpoints."""

    def phases(self) -> Sequence[Phase]:
        """Returns the phases in the order in which a step runs them."""

    def learning_rates(self, stage: Stage) -> Mapping[str, float]:
        """Returns the learning rate of each optimiser in a stage of the run."""

    def compile(self) -> None:
        """Compiles what goes through the networks often, for --compile. Second derivatives must stay eager."""

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Returns the moving averages of G by name, each a function from the images seen to the share that is kept.

        "G_ema" is the one that pictures and metrics show.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Returns what else changes during a run by name: tensors that are equal on all ranks.

        Checkpoints keep them, and a resume restores them in place.
        """
        return {}

    def end_step(self, step: int) -> Mapping[str, Tensor]:
        """Is called on all ranks after the phases of step number `step`; returns statistics by name."""
        return {}


# ---------------------------------------------------------------- families


class RunFields(TypedDict, total=False):
    """Fields of the run's configuration that a preset may set; `training.config.TrainingConfig` has the meanings."""

    mirror: bool
    background: str
    total_kimg: float
    tick_kimg: float
    image_ticks: int
    snapshot_ticks: int
    batch: int
    batch_gpu: int
    stages: tuple[Stage, ...]
    g_lr: float
    d_lr: float
    cooldown_kimg: float
    label_noise: float
    precision: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Preset:
    """Names a member of a family and the settings that train it."""

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    objective: ObjectiveConfig
    run: RunFields = field(default_factory=RunFields)  # where the run differs from the defaults
    for_resolution: bool = False  # taken for data of its resolution where no preset is named


@dataclass(frozen=True)
class Option:
    """Adds an option to train.py. Its type is that of the field that it sets."""

    flags: tuple[str, ...]  # "--gamma"
    target: str  # the field: "objective.gamma", "generator.map_depth", "discriminator.channel_base"
    help: str  # for --help
    least: float | None = None  # smallest legal value
    words: tuple[str, ...] = ()  # legal values, for shells to complete


@dataclass(frozen=True)
class PublishedRun:
    """Holds what a published file, or else the published code, says of the run that wrote the file."""

    preset: str  # the preset with these sizes, "published" where there is none
    discriminator: DiscriminatorConfig  # the file's, or the one that the published code trains with such a generator
    objective: ObjectiveConfig  # losses and optimisers
    geometry: Geometry  # of the cameras
    yaw_limit: float  # radians that the cameras turn to either side
    fields: RunFields = field(default_factory=RunFields)  # where the run differs from the defaults


class PublishedFormat(abc.ABC):
    """Says how published checkpoints of a family are laid out. A file comes open, as inert data.

    Methods raise ValueError, without path and name of the network, for what does not fit; nothing is filled in.
    """

    looks_for: str  # what `recognises` goes by, for people: "G_ema with tensors point_gen.transformer.*"
    records: frozenset[str]  # names of all records that its files may hold
    goes_on_warm: bool = True  # whoever goes on from a file has no warm-up, as from other weights: `Record.warm_start`
    classes: frozenset[str] = frozenset()  # full names of plain classes, besides torch.nn's, of objects in its files
    options: Sequence[Option] = ()  # of convert_checkpoint.py: what a file may leave open
    files: Mapping[str, str] = {}  # record -> word in its name, where every network has a file (module_files.py)

    @abc.abstractmethod
    def recognises(self, file: StoredFile) -> bool:
        """Says whether the file is of this family, going by names and shapes; it may still be damaged."""

    @abc.abstractmethod
    def generator(
        self,
        stored: StoredNetwork,
        tensors: Mapping[str, Tensor],  # its tensors, read
        stated: Mapping[str, Any],  # what the user gave for `options`: target -> value
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns the configuration and our state dict of a stored generator, which may share memory with `tensors`."""

    @abc.abstractmethod
    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns the configuration and our state dict of a stored discriminator."""

    def completed(self, file: StoredFile, generator: Any, stated: Mapping[str, Any]) -> Any:
        """Returns what `generator` returned as configuration, with what other networks of the file tell of it."""
        return generator

    @abc.abstractmethod
    def run(
        self,
        file: StoredFile,
        generator: Any,  # what `generator` returned
        discriminator: Any | None,  # what `discriminator` returned; None if the file has none, or none was read
    ) -> PublishedRun:
        """Returns the settings of the run."""

    def optimizer_record(self, file: StoredFile, network: str) -> str | None:
        """Names the record with the state of the optimiser of "G" or "D"; None, the default, where files have none."""
        return None

    def optimizer_order(self, parameters: Sequence[str], sizes: Sequence[int]) -> Sequence[str] | None:
        """Returns the parameters, given in module order, as an optimiser with groups of such sizes numbers them.

        None if these are no sizes of groups that the published code makes; the default, for files without optimisers.
        """
        return None

    @abc.abstractmethod
    def to_published(
        self,
        generator: Any,  # a configuration of the family's type
        discriminator: Any,  # likewise
        networks: Mapping[str, Mapping[str, Tensor]],  # our state dicts by name, those that there are
    ) -> dict[str, Any]:
        """Returns the published state dicts by name, with what whoever loads them must know besides."""


@dataclass(frozen=True)
class Alarm:
    """Says what statistics must not do. Limits lie far outside of what runs that learn show (docs/resume.md)."""

    name: str
    meaning: str  # what it means, and what to do
    bounds: Mapping[str, tuple[float, float]]  # statistic -> range in which all of them must be for the alarm


@dataclass(frozen=True)
class Family:
    """Joins networks, losses, presets and what the scripts gain: one published system, or one of ours."""

    name: str
    title: str  # one line for people
    generator_config: type[GeneratorConfig]
    generator: Callable[[Any], Generator]  # from a generator_config
    discriminator_config: type[DiscriminatorConfig]
    discriminator: Callable[[Any], Discriminator]  # from a discriminator_config
    objective_config: type[ObjectiveConfig]
    objective: Callable[[RunConfig, Any, Any], Objective]  # from the run's configuration, G and D
    presets: Mapping[str, Preset]
    options: Sequence[Option] = ()
    inspect: Inspect = inspect_splats  # parts and looks of a scene for gen_videos.py
    alarms: Sequence[Alarm] = ()
    curves: Sequence[tuple[str, Sequence[str]]] = ()  # charts of report.py: title, names of statistics
    published: PublishedFormat | None = None  # layout of published checkpoints; None: there are none
