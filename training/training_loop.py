"""The loop: fetch, step, count, and once per tick look around (status, pictures, metrics, checkpoint)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dnnlib
import metrics
from torch_utils import distributed, memory, precision
from torch_utils.lagged import LaggedReader
from torch_utils.training_stats import Collector
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset, LookAhead, iterate
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator
from training.runs import monitor, resume
from training.runs.loggers import StatsLogger
from training.runs.retention import Retention
from training.runs.startup import describe
from training.runs.transfer import LEAST_SHARE, Weights, init_from
from training.safety import run_state
from training.safety.alarms import CollapseAlarms, Collapsed
from training.safety.requests import Requests, Stopped
from training.safety.watchdog import Diverged, Watchdog
from training.step import GanStep, SampleStream, StepReport

LOADER_WORKERS = 3
# Batches fetched before their step: after a GPU's step, several ranks agree on a wish one step later.
LOOK_AHEAD = 2
STATE_MINUTES = 15.0


@dataclass
class Options:
    """What a run does besides training: it changes no number of the run."""

    run_dir: Path
    device: torch.device
    start: resume.Start = field(default_factory=resume.Start)
    init_from: Weights | None = None  # the initial ones, as far as they fit
    init_share: float = LEAST_SHARE  # of each network's values that must fit
    minutes: float | None = None  # wall-clock limit of the whole loop
    state_minutes: float = STATE_MINUTES  # between two writes of state-latest.pkl
    keep: Retention | None = None  # which snapshots stay; None: all
    stop_on_collapse: bool = False
    tensorboard: bool = False
    wandb_mode: str = "off"
    workers: int = LOADER_WORKERS  # threads that read images ahead
    bench: bool = True  # let cuDNN choose its algorithms by trying them out


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
            options.init_from = None  # its tensors are copied
        for module in (self.G, self.D, self.G_ema):
            module.requires_grad_(False)  # a phase switches on what it trains
        self.stats = Collector()
        self.gan = GanStep(config, self.G, self.D, self.G_ema, self.stats)
        self.stream = SampleStream(config, torch.from_numpy(dataset.labels), self.G.z_dim, self.device)
        self.grid = monitor.make_grid(config, dataset, self.G.z_dim)
        self.step = self.nimg = self.tick = self.tick_nimg = 0  # tick_nimg: images seen when the tick began
        self.in_step = False  # while it is, weights and counts do not belong together
        self.saved_step = 0  # of the newest checkpoint
        self.best: dict[str, Any] = {}
        self.reader, self.watchdog, self.alarms = LaggedReader(), Watchdog(config.max_bad_steps), CollapseAlarms()
        self.requests = Requests(options.minutes, options.state_minutes)
        self.started = time.monotonic()
        self.seconds = {"maintenance_sec": 0.0, "checkpoint_sec": 0.0}  # of the last ones
        if options.start.state is not None:
            run_state.restore(self, options.start.state)
            self.saved_step = self.step
            options.start.state = None  # its tensors are copied

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Trains until `total_kimg` images or `minutes` have passed.

        Raises Diverged, Collapsed, Stopped after a signal, and what the data set raises; in each case the run can be
        resumed.
        """
        logger = None
        if distributed.rank() == 0:
            options = self.options
            print(describe(self.config, self.dataset, self.G, self.D, self.device))
            print(f"Run folder  {options.run_dir}", flush=True)
            logger = StatsLogger(options.run_dir, options.tensorboard, options.wandb_mode, self.config.to_dict())
            self._keep_going("pictures", lambda: monitor.save_reals(self.config, self.dataset, options.run_dir))
        total = self.config.total_kimg * 1000
        loader = LookAhead(iterate(self.dataset, self._item_batches(total), self.options.workers), LOOK_AHEAD)
        try:
            with self.requests.listening():
                # A state can be from the end of a tick, before its maintenance.
                while (self.nimg < total or self.nimg > self.tick_nimg) and not self.requests.out_of_time:
                    self._tick(loader, logger, total)
        except Diverged as error:
            raise self._diagnosed(error) from None
        except Exception:
            self._save_unsaved()
            raise
        finally:
            loader.close()
            if logger:
                logger.close()

    def _tick(self, loader: LookAhead, logger: StatsLogger | None, total: float) -> None:
        """Steps until the next status line is due, and what is due then. The first tick is one step."""
        begun, nimg_begun = time.monotonic(), self.nimg
        goal = self.tick_nimg + (1 if self.tick == 0 else self.config.tick_kimg * 1000)
        length = max(int(goal - self.nimg), 0)
        with tqdm(total=length, unit="img", leave=False, delay=1, disable=None if logger else True) as bar:
            while self.nimg < min(goal, total) and not self.requests.out_of_time:
                self._step(loader)
                bar.update(self.config.batch)
        self._heed(self.reader.flush())
        seconds = time.monotonic() - begun
        timing = {"sec_per_tick": seconds, "sec_per_kimg": seconds / max(self.nimg - nimg_begun, 1) * 1000}
        self._maintain(logger, self.nimg >= total or self.requests.out_of_time, timing)

    def _step(self, loader: LookAhead) -> None:
        """One step, and what it, a clock, a signal or the data set has asked for."""
        batch = loader.take()
        if loader.error is not None:
            self.requests.fail()
        self.watchdog.keep(run_state.capture(self) if self.watchdog.suspicious else None)
        micro_batches = self.stream.micro_batches(self.nimg, batch)
        self.in_step = True
        report = self.gan.run(self.step, self.nimg, micro_batches, self.requests.wishes())
        self.step += 1
        self.nimg += self.config.batch
        self.in_step = False
        self._heed(self.reader.put(report, report.values))
        if self.watchdog.suspicious:
            self._heed(self.reader.flush())
        if distributed.world_size() == 1:  # nobody to agree with: a signal that came during the step ends it
            self.requests.agree(self.requests.wishes())
        if self.requests.stop:
            self._heed(self.reader.flush())
            self._save_state()
            if loader.error is not None:
                raise loader.error
            raise Stopped(f"{self.requests.reason()}: stopped after step {self.step}; --resume=latest goes on")
        if self.requests.state_due:
            self._save_state()

    def _heed(self, reports: list[tuple[StepReport, torch.Tensor]]) -> None:
        for report, values in reports:
            self.requests.agree(report.requests(values))
            self.watchdog.see(report.step, report.bad(values))

    def _maintain(self, logger: StatsLogger | None, last: bool, timing: dict[str, float]) -> None:
        """Once per tick: statistics and status line, then pictures, metrics and checkpoint where they are due."""
        snapshot = last or self.tick % self.config.snapshot_ticks == 0
        measure = snapshot and self.config.metrics and (self.tick > 0 or last)
        if measure:  # they can take hours; a kill during them then costs only them
            self._save_state()
        begun = time.monotonic()
        values = {n: v for n, v in self.stats.reduce().items() if v or not n.startswith("NonFinite/")}
        timing = {
            "total_sec": time.monotonic() - self.started,
            **timing,
            **self.seconds,
            **memory.peaks(self.device),
        }
        self.watchdog.ticks.append({"tick": self.tick, "nimg": self.nimg, **values})
        if logger:
            monitor.print_status(self.tick, self.nimg, timing, values)
            logger.write(self.step, self.nimg, values, timing)
            if last or self.tick % self.config.image_ticks == 0:
                path = self.options.run_dir / f"fakes{self.nimg // 1000:06d}.png"
                self._keep_going("pictures", lambda: monitor.save_fakes(path, self.G_ema, self.grid, self.config))
        self.tick += 1
        self.tick_nimg = self.nimg
        if snapshot:
            path = checkpoint.snapshot_path(self.options.run_dir, self.nimg) if logger else None
            if measure:
                with self.requests.interruptible():
                    self._measure(path)
            self.save(path)
            if path is not None and self.options.keep is not None:
                self._keep_going("retention", self._apply_retention)
        distributed.barrier()
        self._sound_alarms(values)
        self.seconds["maintenance_sec"] = time.monotonic() - begun

    def _sound_alarms(self, values: dict[str, float]) -> None:
        for line in self.alarms.see(values):
            if self.options.stop_on_collapse:
                self._save_state()
                raise Collapsed(f"{line} (stopped for --stop-on-collapse; --resume=latest goes on)")
            if distributed.rank() == 0:
                print(f"Warning: {line}", flush=True)

    def _diagnosed(self, error: Diverged) -> Diverged:
        """The error with what to do about it, once the diagnosis is written."""
        advice = "the last checkpoint is kept; try a smaller --glr and --dlr, or --precision=fp32"
        if distributed.rank() == 0:
            try:
                command = self.watchdog.diagnose(error, self.options.run_dir, str(self.device), self.stream.order)
                advice = f"{command} replays the step; {advice}"
            except OSError as full:
                advice = f"no diagnosis was written ({full}); {advice}"
        return error.with_advice(advice)

    # ------------------------------------------------------------------ its parts

    def _item_batches(self, total: float):
        nimg = self.nimg
        while nimg < total:
            yield self.stream.items(nimg)
            nimg += self.config.batch

    def _init_from(self, weights: Weights) -> None:
        networks = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        transfers = init_from(weights, networks, self.options.init_share)
        if distributed.rank() == 0:
            print("\n".join([f"Weights from {weights.path}", *(line for t in transfers for line in t.lines())]))

    def _save_state(self) -> None:
        """Every rank calls this, after the same step."""
        self.save(self.options.run_dir / checkpoint.STATE_NAME if distributed.rank() == 0 else None)
        self.requests.state_written()

    def _save_unsaved(self) -> None:
        """Before an error ends the run: what was computed since the last checkpoint is kept if it is whole.

        Several ranks cannot: the others are elsewhere, and a checkpoint takes all of them.
        """
        if distributed.world_size() == 1 and not self.in_step and self.step > self.saved_step:
            self._save_state()

    def _apply_retention(self) -> None:
        for victim in self.options.keep.victims(self.options.run_dir, metrics.larger_is_better):
            victim.unlink()
            print(f"Removed {victim.name}, which --keep does not want", flush=True)

    def save(self, path: Path | None) -> None:
        """Writes a checkpoint to rank 0's `path`. One that cannot be written costs a line, not the run."""
        begun = time.monotonic()
        run_state.check_ranks(self)
        state = run_state.capture(self)
        if path is not None and self._keep_going(path.name, lambda: checkpoint.save_checkpoint(path, state)):
            self.saved_step = self.step
        self.seconds["checkpoint_sec"] = seconds = time.monotonic() - begun
        self._keep_going("the launcher's note", lambda: distributed.note_snapshot(seconds))

    def _keep_going(self, what: str, write) -> bool:
        """Calls `write`; a file system that refuses does not end a run. Returns whether it was written."""
        try:
            write()
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
            print(f"Warning: {what} not written ({reason}); training goes on", flush=True)
            return False
        return True

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
                write = partial(metrics.write_result, result, self.options.run_dir, snapshot)
                self._keep_going(f"metric-{name}.jsonl", write)
                note = f" ({result.note})" if result.note else ""
                print(f"{name} {result.value:.4g} in {dnnlib.format_time(result.seconds)}{note}", flush=True)


def train(config: TrainingConfig, options: Options, dataset: ImageDataset) -> None:
    """Trains one run. Writes everything into `options.run_dir`, which exists; only rank 0 writes."""
    memory.keep_freed_memory()
    if distributed.rank() == 0:
        if lines := resume.describe(options.start, config):
            print("\n".join(lines), flush=True)
        resume.record(options.start, options.run_dir, config)
        text = json.dumps(config.to_dict(), indent=2)
        (options.run_dir / "training_options.json").write_text(text + "\n")
    trainer = Trainer(config, options, dataset)
    try:
        trainer.run()
    except ValueError as error:
        if type(error) is ValueError:  # those of the user have a name; this one is ours and needs its traceback
            raise RuntimeError("a bug in SplatGAN, please report it") from error
        raise
