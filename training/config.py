"""The one typed description of a training run; what is written beside a run is this record, every value resolved."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import dnnlib
from training.families.cgs.generator import GeneratorConfig
from training.networks.discriminator import DiscriminatorConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the numbers of a run. Defaults are the published CGS-GAN values for 512 px."""

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    preset: str
    data: str  # folder of the images
    index_list: str | None = None  # JSON list of item numbers
    mirror: bool = True  # flips image, mask and camera of every second sample
    background: str = "random"  # behind real and fake: "random" (per sample), "white", "black" or "R,G,B" in 0..1
    seed: int = 0

    # Schedule
    total_kimg: float = 15000.0  # length of the run in thousands of real images
    tick_kimg: float = 1.0  # between two status lines
    image_ticks: int = 50  # ticks between two pictures
    snapshot_ticks: int = 500  # ticks between two checkpoints
    batch: int = 32  # samples per step, over all ranks
    batch_gpu: int = 8  # samples per micro-batch

    # Losses
    gamma: float = 1.0  # R1 weight
    multiview: bool = True  # average the generator's gradient over several views of one scene
    num_views: int = 4
    knn_weight: float = 20.0
    knn_neighbours: int = 64
    center_weight: float = 1.0
    blur_sigma: float = 10.0  # pixels, at the start
    blur_fade_kimg: float = 200.0

    # Optimisation
    g_lr: float = 0.0025
    d_lr: float = 0.002  # before the lazy-regularisation factor
    beta2: float = 0.99  # beta1 is 0
    r1_interval: int = 16  # steps between two R1 steps
    g_clip: float = 20.0  # largest norm of the mean gradient
    d_clip: float = 5.0
    ema_halflife_kimg: float = 10.0
    ema_rampup: float = 0.05  # the half-life is at most this share of the images seen
    freeze_d: int = 0  # layers of D, from the image on, that do not learn
    label_noise: float = 0.0  # of the cameras that D is told, in standard deviations of the data's labels

    # Machine and measuring
    precision: str = "auto"  # of the discriminator's convolutions
    rasterizer: str = "auto"
    metrics: tuple[str, ...] = ("fid20k_full",)
    detector: str | None = None  # weights of the 2015 Inception network
    detector_vgg: str | None = None  # weights of the VGG-16 network
    max_bad_steps: int = 10  # skipped steps in a row after which the run stops

    @property
    def shown_background(self) -> str:
        """The colour behind pictures, films and metrics: the one of training, white where that is random."""
        return "white" if self.background == "random" else self.background

    @property
    def views(self) -> range:
        """Offsets v: scene b is seen from the camera of sample (b - v) mod batch."""
        return range(1, self.num_views + 1) if self.multiview else range(1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: only dicts, lists, strings, numbers, booleans and None."""
        return _jsonable(asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Inverse of `to_dict`. Raises ValueError naming an unknown or missing field."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"training configuration: unknown field {', '.join(unknown)}")
        if missing := sorted({"generator", "discriminator", "preset", "data"} - set(values)):
            raise ValueError(f"training configuration: missing field {', '.join(missing)}")
        values = dict(values, metrics=tuple(values.get("metrics", ())))
        values["generator"] = GeneratorConfig.from_dict(values["generator"])
        values["discriminator"] = DiscriminatorConfig.from_dict(values["discriminator"])
        return cls(**values)

    def check(self, ranks: int = 1) -> None:
        """Raises ValueError with a line a user can act on if options contradict each other."""
        share = ranks * self.batch_gpu
        if self.batch <= 0 or self.batch % share:
            raise ValueError(
                f"--batch={self.batch} is not a multiple of --gpus x --batch-gpu = {ranks} x {self.batch_gpu} = {share}"
            )
        group = self.discriminator.minibatch_std_group
        if group > 1 and self.batch_gpu % group:
            raise ValueError(f"--batch-gpu={self.batch_gpu} is not a multiple of the minibatch-std group of {group}")
        if self.num_views < 1:
            raise ValueError(f"--num-multiview={self.num_views}: at least 1 view is needed")
        if self.multiview and self.batch == 1:
            raise ValueError(
                "--batch=1 leaves multi-view regularisation only the scene's own camera; use --batch=2 or more"
            )
        points = self.generator.num_points
        if self.knn_weight and not 0 < self.knn_neighbours < points:
            raise ValueError(f"--knn-num-ks={self.knn_neighbours}: legal are 1 to {points - 1} (points - 1)")
        for flag, value in (
            ("--kimg", self.total_kimg),
            ("--tick", self.tick_kimg),
            ("--glr", self.g_lr),
            ("--dlr", self.d_lr),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and greater than 0")
        for flag, value in (
            ("--gamma", self.gamma),
            ("--center-dists", self.center_weight),
            ("--knn-dists", self.knn_weight),
            ("--blur-fade-kimg", self.blur_fade_kimg),
            ("--disc-c-noise", self.label_noise),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and 0 or greater")
        layers = self.discriminator.num_freezable
        if not 0 <= self.freeze_d <= layers:
            raise ValueError(f"--freezed={self.freeze_d}: legal are 0 to {layers}, the discriminator's layers")
        if self.background != "random":
            dnnlib.parse_color(self.background)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value
