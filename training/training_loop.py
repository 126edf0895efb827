"""The loop: fetch, step, count, and once per tick look around (status, pictures, checkpoints, metrics)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dnnlib
import metrics
from gaussian import Cameras
from torch_utils import distributed, memory, precision, random
from torch_utils.training_stats import Collector
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset, composite, iterate
from training.discriminator import Discriminator
from training.generator import Generator
from training.loggers import StatsLogger
from training.startup import describe
from training.step import GanStep, SampleStream
from training.transfer import LEAST_SHARE, init_from
from training.visualize import save_camera_histogram, save_image_grid

GRID_ROWS, GRID_COLUMNS = 6, 7  # identities, yaws of the training pictures
LOADER_WORKERS = 3


@dataclass
class Options:
    """What a run does besides training: it changes no number of the run."""

    run_dir: Path
    device: torch.device
    minutes: float | None = None  # wall-clock limit of the whole loop
    resume: str | None = None  # checkpoint to continue
    resume_kimg: float | None = None  # thousands of images it counts as; None: what it says itself
    init_from: str | None = None  # checkpoint whose weights are the initial ones, as far as they fit
    init_share: float = LEAST_SHARE  # of each network's values that must fit
    tensorboard: bool = False
    wandb_mode: str = "off"
    workers: int = LOADER_WORKERS  # threads that read images ahead
    bench: bool = True  # let cuDNN choose its algorithms by trying them out


class Diverged(RuntimeError):
    """Too many non-finite gradients in a row; the message names the parameters."""


class Trainer:
    """The state of a run and the parts of its loop."""

    def __init__(self, config: TrainingConfig, options: Options, dataset: ImageDataset):
        self.config, self.options, self.dataset = config, options, dataset
        self.device = options.device
        torch.backends.cudnn.benchmark = options.bench
        torch.manual_seed(config.seed)  # the initial weights are the only draw from torch's own generator
        self.G = Generator(config.generator).to(self.device)
        self.D = Discriminator(config.discriminator).to(self.device)
        self.G.geometry, self.G.rasterizer = dataset.geometry, config.rasterizer
        self.D.low_dtype = precision.resolve(config.precision, self.device)
        if self.D.low_dtype == torch.bfloat16:  # has float32's range; with float16 the generator stays in float32
            self.G.low_dtype = torch.bfloat16
        self.G_ema = Generator(config.generator).to(self.device).eval()
        self.G_ema.load_state_dict(self.G.state_dict())
        self.G_ema.geometry, self.G_ema.rasterizer = dataset.geometry, config.rasterizer
        if options.init_from:
            self._init_from(options.init_from)
        for module in (self.G, self.D, self.G_ema):
            module.requires_grad_(False)  # a phase switches on what it trains
        self.stats = Collector()
        self.gan = GanStep(config, self.G, self.D, self.G_ema, self.stats)
        self.stream = SampleStream(config, torch.from_numpy(dataset.labels), self.G.z_dim, self.device)
        self.grid = _grid(config, dataset, self.G.z_dim)
        self.step = self.nimg = self.tick = 0
        self.best: dict[str, Any] = {}
        self.started = time.monotonic()
        if options.resume:
            self._resume(options.resume)

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Trains until `total_kimg` images or `minutes` have passed. Raises Diverged."""
        main = distributed.rank() == 0
        logger = None
        if main:
            print(describe(self.config, self.dataset, self.G, self.D, self.device))
            print(f"Run folder  {self.options.run_dir}", flush=True)
            logger = StatsLogger(
                self.options.run_dir, self.options.tensorboard, self.options.wandb_mode, self.config.to_dict()
            )
            self._save_reals()
        total = self._total_nimg()
        loader = iterate(self.dataset, self._item_batches(total), self.options.workers)
        last = self.nimg >= total
        while not last:
            tick_start, nimg_start, first_step = time.monotonic(), self.nimg, self.step == 0
            goal = self.nimg + (0 if first_step else self.config.tick_kimg * 1000)
            with tqdm(total=int(goal - self.nimg), unit="img", leave=False, disable=not main, delay=1) as bar:
                while True:
                    batch = next(loader)
                    self.gan.run(self.step, self.nimg, self.stream.micro_batches(self.nimg, batch))
                    self.step += 1
                    self.nimg += self.config.batch
                    bar.update(self.config.batch)
                    last = self.nimg >= total or self._out_of_time()
                    if last or self.nimg >= goal:
                        break
            self._maintain(logger, last, tick_start, nimg_start)
            self.tick += 1
        loader.close()
        if logger:
            logger.close()

    def _maintain(self, logger: StatsLogger | None, last: bool, tick_start: float, nimg_start: int) -> None:
        """Once per tick: status line and statistics, then pictures, checkpoint and metrics where they are due."""
        values = {n: v for n, v in self.stats.reduce().items() if v or not n.startswith("NonFinite/")}
        seconds = time.monotonic() - tick_start
        timing = {
            "total_sec": time.monotonic() - self.started,
            "sec_per_tick": seconds,
            "sec_per_kimg": seconds / (self.nimg - nimg_start) * 1000,
            "maintenance_sec": getattr(self, "_maintenance", 0.0),
            **memory.peaks(self.device),
        }
        begun = time.monotonic()
        if logger:
            _print_status(self.tick, self.nimg, timing, values)
            logger.write(self.step, self.nimg, values, timing)
            if last or self.tick % self.config.image_ticks == 0:
                self._save_fakes()
        self._stop_if_diverged(values)
        if last or self.tick % self.config.snapshot_ticks == 0:
            path = self._save_snapshot() if logger else None
            if self.tick > 0 or last:
                self._measure(path)
        distributed.barrier()
        self._maintenance = time.monotonic() - begun

    # ------------------------------------------------------------------ its parts

    def _item_batches(self, total: float):
        nimg = self.nimg
        while nimg < total:
            yield self.stream.items(nimg)
            nimg += self.config.batch

    def _total_nimg(self) -> float:
        return self.config.total_kimg * 1000

    def _out_of_time(self) -> bool:
        if self.options.minutes is None:
            return False
        passed = time.monotonic() - self.started >= self.options.minutes * 60
        return distributed.any_rank(passed, self.device)

    def _stop_if_diverged(self, values: dict[str, float]) -> None:
        for phase in self.gan.phases:
            if int(phase.bad_in_a_row) >= self.config.max_bad_steps:
                names = [n for n in values if n.startswith(f"NonFinite/{phase.name}/")]
                raise Diverged(
                    f"phase {phase.name}: {int(phase.bad_in_a_row)} steps in a row had a non-finite gradient, in "
                    f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}; "
                    "the last checkpoint is kept; try a smaller --glr and --dlr, or --precision=fp32"
                )

    def _save_snapshot(self) -> Path:
        path = checkpoint.snapshot_path(self.options.run_dir, self.nimg)
        checkpoint.save_checkpoint(
            path,
            {
                "config": self.config.to_dict(),
                "geometry": self.dataset.geometry.to_dict(),
                "progress": {
                    "nimg": self.nimg,
                    "step": self.step,
                    "tick": self.tick,
                    "threads": torch.get_num_threads(),  # float sums depend on both
                    "ranks": distributed.world_size(),
                },
                "G": self.G.state_dict(),
                "D": self.D.state_dict(),
                "G_ema": self.G_ema.state_dict(),
                "opt": {
                    "G": checkpoint.optimizer_state(self.G, self.gan.opt_G),
                    "D": checkpoint.optimizer_state(self.D, self.gan.opt_D),
                },
                "grid": self.grid,
                "best": self.best,
            },
        )
        return path

    def _init_from(self, path: str) -> None:
        networks = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        transfers = init_from(path, networks, self.options.init_share)
        if distributed.rank() == 0:
            print("\n".join([f"Weights from {path}", *(line for t in transfers for line in t.lines())]))

    def _resume(self, path: str) -> None:
        state = checkpoint.load_checkpoint(path)
        for key in ("generator", "discriminator"):
            if state["config"][key] != self.config.to_dict()[key]:
                raise checkpoint.CheckpointError(f"{path}: its {key} has another configuration than this run's preset")
        self.G.load_state_dict(state["G"])
        self.D.load_state_dict(state["D"])
        self.G_ema.load_state_dict(state["G_ema"])
        checkpoint.load_optimizer_state(self.G, self.gan.opt_G, state["opt"]["G"])
        checkpoint.load_optimizer_state(self.D, self.gan.opt_D, state["opt"]["D"])
        self.nimg, self.step = state["progress"]["nimg"], state["progress"]["step"]
        self.tick = state["progress"]["tick"] + 1
        if self.options.resume_kimg is not None:
            self.step = round(self.options.resume_kimg * 1000 / self.config.batch)
            self.nimg = self.step * self.config.batch
        self.grid, self.best = state["grid"], state["best"]

    def _measure(self, snapshot: Path | None) -> None:
        """All metrics of the configuration on G_ema, shared by all ranks; rank 0, which has `snapshot`, writes.

        One that cannot run says so in a line and is left out.
        """
        main = snapshot is not None
        for name in self.config.metrics:
            try:
                result = metrics.compute_metric(
                    name,
                    self.G_ema,
                    self.dataset,
                    detector=self.config.detector,
                    detector_vgg=self.config.detector_vgg,
                    device=self.device,
                    background=self.config.shown_background,
                )
            except metrics.MetricUnavailable as reason:
                if main:
                    print(f"{name} left out: {reason}", flush=True)
                continue
            best = self.best.get(name)
            if result.beats(best and best["value"]):
                self.best[name] = {"value": result.value, "nimg": self.nimg}
            if main:
                metrics.write_result(result, self.options.run_dir, snapshot)
                note = f" ({result.note})" if result.note else ""
                print(f"{name} {result.value:.4g} in {dnnlib.format_time(result.seconds)}{note}", flush=True)

    # ------------------------------------------------------------------ what a user sees

    def _save_reals(self) -> None:
        order = random.permutation(self.config.seed, "grid/reals", 0, len(self.dataset))[: GRID_ROWS * GRID_COLUMNS]
        batch = self.dataset.load(order)
        background = torch.tensor(dnnlib.parse_color(self.config.shown_background)).expand(len(order), 3)
        save_image_grid(
            composite(batch.images, batch.masks, background), self.options.run_dir / "reals.png", GRID_COLUMNS
        )
        cameras = Cameras.from_labels(torch.from_numpy(self.dataset.labels))
        save_camera_histogram(cameras, self.dataset.geometry, self.options.run_dir / "cameras.png")

    def _save_fakes(self) -> None:
        """One identity a row, one yaw a column, by G_ema."""
        background = torch.tensor(dnnlib.parse_color(self.config.shown_background))
        with torch.no_grad():
            scene = self.G_ema.synthesis(self.G_ema.mapping(self.grid["z"].to(self.device)))
            cameras = Cameras.from_labels(self.grid["labels"].to(self.device))
            cameras = cameras.expand(GRID_ROWS, GRID_COLUMNS)
            images = self.G_ema.render(scene, cameras, background=background).image.flatten(0, 1)
        save_image_grid(images, self.options.run_dir / f"fakes{self.nimg // 1000:06d}.png", GRID_COLUMNS)


def _grid(config: TrainingConfig, dataset: ImageDataset, z_dim: int) -> dict[str, torch.Tensor]:
    """Latents of the rows and cameras of the columns: the data's yaw range, 5th to 95th percentile, at level pitch."""
    yaw, _ = Cameras.from_labels(torch.from_numpy(dataset.labels)).yaw_pitch(dataset.geometry)
    low, high = yaw.quantile(0.05).item(), yaw.quantile(0.95).item()
    cameras = dataset.geometry.orbit(torch.linspace(low, high, GRID_COLUMNS))
    return {"z": random.normal(config.seed, "grid/z", range(GRID_ROWS), (z_dim,)), "labels": cameras.labels}


def _print_status(tick: int, nimg: int, timing: dict[str, float], values: dict[str, float]) -> None:
    fields = [
        f"tick {tick:<5d}",
        f"kimg {nimg / 1000:<8.1f}",
        f"time {dnnlib.format_time(timing['total_sec']):<12s}",
        f"sec/tick {timing['sec_per_tick']:<7.1f}",
        f"sec/kimg {timing['sec_per_kimg']:<7.2f}",
        f"maintenance {timing['maintenance_sec']:<6.1f}",
        f"cpumem {timing['cpu_peak_gib']:<6.2f}",
    ]
    if "gpu_peak_gib" in timing:
        fields.append(f"gpumem {timing['gpu_peak_gib']:<6.2f}")
    fields.append(f"logits {values['Logits/real']:+.2f} {values['Logits/fake']:+.2f}")
    print(" ".join(fields), flush=True)


def train(config: TrainingConfig, options: Options, dataset: ImageDataset) -> None:
    """Trains one run. Writes everything into `options.run_dir`, which exists; only rank 0 writes."""
    memory.keep_freed_memory()
    if distributed.rank() == 0:
        text = json.dumps(config.to_dict(), indent=2)
        (options.run_dir / "training_options.json").write_text(text + "\n")
    Trainer(config, options, dataset).run()
