"""Inverts pictures: runs the stages one after the other, and keeps what each of them reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaussian import Cameras, Gaussians
from gaussian.scene import Scene
from training.families.base import Discriminator, Generator
from training.inversion.cameras import DEVIATIONS, Tracker, angle_between, grid_of_cameras
from training.inversion.encoder import Encoder, Guess
from training.inversion.fitting import Fit, Fitter, Target
from training.inversion.latents import LatentSpace, measure_latents
from training.inversion.similarity import DiscriminatorFeatures, Features, Similarity, psnr
from training.inversion.tuning import refine_splats, tune_generator
from training.visualization.video import checkpoint_info

YAWS, PITCHES = 9, 3  # cameras that are tried
WIDER = 1.3  # than the data's yaws reach
PITCH_RANGE = 0.25  # radians
CHECK_STEPS = 12  # of a camera that was held, to see whether it would rather be elsewhere
LEAST_EXPLAINED = 0.35  # share of a picture's variance below which it shows no head that the network could make
STRETCHES = (1.0, 1.5)  # of an encoder's latents, which lie nearer to the mean than those that they stand for
Report = Callable[[str, int], object]  # is told a stage and how many of its steps were done


def parts_of(G: Generator) -> int:
    """Returns how many parts of a generator can have a latent each."""
    return G.block_ws or G.num_ws


class NoHeadError(ValueError):
    """Says that a picture shows no head that the network could make."""

    def __init__(self, picture: int, share: float):
        super().__init__(f"picture {picture}: {share:.0%} of it explained")
        self.picture, self.share = picture, share


@dataclass(frozen=True)
class Settings:
    """Says how long and how freely is searched. A stage of 0 steps is left out."""

    heads: int = 24  # that the search tries under every camera
    starts: int = 3  # trials that go on from there
    start_steps: int = 10
    latent_steps: int = 50  # of one w
    block_steps: int = 40  # of a w for each part
    tuning_steps: int = 40  # of the generator's weights
    splat_steps: int = 40  # of the splats, where there are any
    rate: float = 0.15  # of the latents, standard deviations a step
    tuning_rate: float = 1e-3
    prior: float = 0.01  # weight of the latent's squared distance from the mean
    leash: float = 0.02  # weight of the parts' squared distance from one another
    locality: float = 0.5  # weight of how much other heads may change while the network is tuned
    hold: float = 0.2  # weight of how much the outline from elsewhere may change meanwhile
    splat_hold: float = 0.5  # weight of how much views from elsewhere may change while splats are refined
    splat_leash: float = 0.01  # weight of the splats' squared changes
    symmetry: float = 0.5  # weight of the mirror images of pictures from the side
    features: bool = True  # whether the discriminator's features are compared
    moves_camera: bool = True  # whether a camera that was tried moves along with the one w; an encoder's is held

    def steps(self, G: Generator, encoded: bool = False) -> int:
        """Returns the steps of all stages together that there are for a generator, with an encoder if `encoded`."""
        total = self.heads + encoded * len(STRETCHES) + self.latent_steps + self.tuning_steps
        total += self.start_steps if self.starts > 1 else 0
        total += self.block_steps if parts_of(G) > 1 else 0
        return total + (self.splat_steps if G.makes_splats else 0)


@dataclass(frozen=True)
class Stage:
    """Holds what the pictures looked like after a stage."""

    name: str
    psnr: list[float]  # dB of each picture
    seconds: float  # that it took
    processor_seconds: float


@dataclass
class Inversion:
    """Holds what was found: the head, its cameras, the tuned network, and how far each stage came."""

    target: Target
    G: Generator  # tuned, or as it was
    original: Generator
    space: LatentSpace
    coordinates: Tensor  # [K, D] in `space`
    ws: Tensor  # [1, num_ws or block_ws, w_dim]
    cameras: Cameras  # [V] in model units
    scene: Scene  # of one head, its splats refined if that was asked for
    refined: bool  # whether `scene` is more than the network makes of `ws`
    motion: Tensor  # [V, 7] of the cameras from where the search put them; of held ones, that they would rather make
    rivals: list[tuple[float, float]]  # trials of the search: loss, angle in degrees from the one that was chosen
    strayed: list[float] | None  # degrees that a given camera would rather be elsewhere; None: cameras were found
    doubts: tuple[float, float] | None = None  # degrees of pitch and yaw that an encoder's cameras are known to
    symmetric: bool = False  # whether mirror images were compared as well
    misled: bool = False  # whether no head was found where an encoder said, and cameras were tried after all
    stages: list[Stage] = field(default_factory=list)

    @torch.no_grad()
    def shown(self, cameras: Cameras, scene: Scene | None = None) -> tuple[Tensor, Tensor]:
        """Returns rgb [V, 3, R, R] in 0..1 and alpha [V, 1, R, R] of the head from cameras [V]."""
        size, behind = self.target.images.shape[-1], self.target.background
        out = self.G.render(self.scene if scene is None else scene, cameras.reshape(1, -1), size, behind)
        return out.rgb[0].clamp(0, 1), out.alpha[0]


class Clock:
    """Times stages, and measures the pictures after each of them."""

    def __init__(self, target: Target):
        self.target, self.stages = target, list[Stage]()
        self._start = self._begun = time.perf_counter(), time.process_time()

    def forget(self) -> None:
        """Drops all stages, which led nowhere; their time counts to the one that comes next."""
        self.stages.clear()
        self._begun = self._start

    @torch.no_grad()
    def note(self, name: str, fitter: Fitter, G: Generator, scene: Scene, cameras: Cameras) -> None:
        """Notes a stage that has ended with one scene under cameras [V]."""
        took = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        images = self.target.images
        shown = G.render(scene, cameras.reshape(1, -1), images.shape[-1], self.target.background).rgb[0]
        self.stages.append(Stage(name, psnr(shown, images).tolist(), *took))
        self._begun = time.perf_counter(), time.process_time()


def invert(
    G: Generator,
    D: Discriminator | None,  # whose features are compared; None: none are
    target: Target,
    cameras: Cameras | None,  # [V] in model units; None: they are looked for
    settings: Settings = Settings(),
    perceptual: Features | None = None,
    encoder: Encoder | None = None,  # of G, that says where to begin; None: heads and cameras are tried
    report: Report = lambda stage, steps: None,
) -> Inversion:
    """Finds the head and the cameras of pictures; nothing about G or D changes.

    Where an encoder leads to no head, cameras are tried as if there were none.
    """
    clock, info = Clock(target), checkpoint_info(G)
    features = DiscriminatorFeatures(D) if D is not None and settings.features else None
    similarity = Similarity(target.images, target.masks, features, perceptual)
    fitter = Fitter(G, measure_latents(G), target, similarity, settings.symmetry)
    guess, misled = None if encoder is None else encoder.guess(target, G.geometry), False
    try:
        try:
            fit, rivals = _found(fitter, cameras, guess, settings, clock, report)
        except NoHeadError:
            if guess is None or cameras is not None:
                raise
            clock.forget()
            guess, misled = None, True
            fit, rivals = _found(fitter, None, None, settings, clock, report)
        tuned, scene = G, fitter.scene(fit.coordinates)
        if settings.tuning_steps:
            tuned = tune_generator(
                fitter, fit, info.yaw_limits, settings.tuning_steps, settings.tuning_rate, settings.locality,
                settings.hold, lambda n: report("weights", n),
            )  # fmt: skip
            scene = tuned.synthesis(fitter.ws(fit.coordinates))
            clock.note("weights", fitter, tuned, scene, fit.tracker.cameras[0])
        refined = bool(settings.splat_steps) and isinstance(scene, Gaussians)
        if refined:
            assert isinstance(scene, Gaussians)
            scene = refine_splats(
                fitter, tuned, scene.detach(), fit.tracker.cameras, info.yaw_limits, settings.splat_steps,
                settings.splat_leash, settings.splat_hold, lambda n: report("splats", n),
            )  # fmt: skip
            clock.note("splats", fitter, tuned, scene, fit.tracker.cameras[0])
        motion, strayed = fit.tracker.motion[0], None
        if cameras is not None:
            strayed = _angles(fit.tracker, _freed(fitter, fit))
        elif guess is not None:
            motion = _freed(fitter, fit, guess.doubts).motion[0]
    finally:
        if features is not None:
            features.release()
    return Inversion(
        target, tuned, G, fitter.space, fit.coordinates[0], fitter.ws(fit.coordinates), fit.tracker.cameras[0], scene,
        refined, motion, rivals, strayed, _doubts(guess, cameras), bool(settings.symmetry), misled,
        clock.stages,
    )  # fmt: skip


def _doubts(guess: Guess | None, cameras: Cameras | None) -> tuple[float, float] | None:
    if guess is None or cameras is not None:
        return None
    return math.degrees(guess.doubts[0]), math.degrees(guess.doubts[1])


def _found(
    fitter: Fitter, cameras: Cameras | None, guess: Guess | None, settings: Settings, clock: Clock, report: Report
) -> tuple[Fit, list[tuple[float, float]]]:
    """Searches, and fits the latent that is found; returns it with what `_begin` chose from. Raises NoHeadError."""
    fit, rivals = _begin(fitter, cameras, guess, settings, report)
    clock.note("search", fitter, fitter.G, fitter.scene(fit.coordinates), fit.tracker.cameras[0])
    moves = settings.moves_camera and cameras is None and guess is None  # fitting errs more than an encoder does
    fit = _descend(fitter, fit, settings, moves, clock, report)
    _require_heads(fitter, fit)
    return fit, rivals


def _begin(
    fitter: Fitter, cameras: Cameras | None, guess: Guess | None, settings: Settings, report: Report
) -> tuple[Fit, list[tuple[float, float]]]:
    """Returns one trial, and all that it was chosen from as (loss, degrees from the chosen one)."""
    G = fitter.G
    heads, known = fitter.candidates(settings.heads), guess.cameras if guess and cameras is None else cameras
    if guess is not None:
        heads = torch.cat([heads, torch.stack([stretch * guess.coordinates for stretch in STRETCHES])[:, None]])
    cells = _cells(G) if known is None else known
    fit = fitter.search(heads, cells, known is not None, settings.starts, lambda n: report("search", n))
    if len(fit.losses) > 1:
        fit = fitter.descend(
            fit, settings.start_steps, settings.rate, settings.prior, 0.0, settings.moves_camera and known is None,
            lambda n: report("starts", n),
        )  # fmt: skip
    best = int(fit.losses.argmin())
    found = fit.tracker.cameras
    apart = angle_between(found, found[best : best + 1].expand(*found.shape), G.geometry).amax(1)
    rivals = sorted(zip(fit.losses.tolist(), apart.tolist(), strict=True))
    return fit.chosen(best), rivals


def _cells(G: Generator) -> Cameras:
    """Returns the cameras that are tried where none are known."""
    low, high = checkpoint_info(G).yaw_limits
    middle, half = (low + high) / 2, WIDER * (high - low) / 2
    yaws, pitches = (
        torch.linspace(middle - half, middle + half, YAWS),
        torch.linspace(-PITCH_RANGE, PITCH_RANGE, PITCHES),
    )
    return grid_of_cameras(G.geometry, yaws, pitches).to(G.device)


def _descend(fitter: Fitter, fit: Fit, settings: Settings, moves: bool, clock: Clock, report: Report) -> Fit:
    """Runs the stages of one w, and of a w for each part, which would make up for a wrong camera: it stays."""
    G, s = fitter.G, settings
    if s.latent_steps:
        fit = fitter.descend(fit, s.latent_steps, s.rate, s.prior, 0.0, moves, lambda n: report("latent", n))
        clock.note("latent", fitter, G, fitter.scene(fit.coordinates), fit.tracker.cameras[0])
    parts = parts_of(G)
    if s.block_steps and parts > 1:
        fit = Fit(fit.coordinates.expand(-1, parts, -1).contiguous(), fit.tracker, fit.losses)
        fit = fitter.descend(fit, s.block_steps, s.rate / 2, s.prior, s.leash, False, lambda n: report("parts", n))
        clock.note("parts", fitter, G, fitter.scene(fit.coordinates), fit.tracker.cameras[0])
    return fit


@torch.no_grad()
def _require_heads(fitter: Fitter, fit: Fit) -> None:
    """Raises NoHeadError for the first picture of which latent and camera explain too little."""
    size, target = fitter.target.images.shape[-1], fitter.target
    shown = fitter.seen(fitter.scene(fit.coordinates), fit.tracker.cameras, size)[0, :, :3]
    error = (shown - target.images).square().mean((1, 2, 3))
    explained = 1 - error / target.images.var((2, 3), correction=0).mean(1)
    for i, share in enumerate(explained.tolist()):
        if not share >= LEAST_EXPLAINED:
            raise NoHeadError(i, max(share, 0.0))


def _freed(fitter: Fitter, fit: Fit, doubts: tuple[float, float] = DEVIATIONS[:2]) -> Tracker:
    """Returns cameras that were held after they could move for some steps, the head held."""
    free = Tracker.at(fit.tracker.cameras, fitter.G.geometry, doubts)
    return fitter.track(Fit(fit.coordinates, free, fit.losses), CHECK_STEPS).tracker


def _angles(held: Tracker, free: Tracker) -> list[float]:
    """Returns the degrees [V] between the cameras of two trackers of one trial."""
    moved: list[float] = angle_between(held.cameras, free.cameras, held.geometry)[0].tolist()
    return moved
