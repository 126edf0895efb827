"""Runs the loop: fetch, step, count, and once per tick look around (status, pictures, metrics, checkpoint)."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from gaussian import NonFiniteScene
from torch_utils import distributed, memory, precision
from torch_utils.lagged import LaggedReader
from torch_utils.training_stats import Collector
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset, LookAhead, ahead
from training.families import family
from training.families.base import Generator
from training.runs import monitor, resume
from training.runs.loggers import StatsLogger
from training.runs.retention import Retention
from training.runs.startup import describe
from training.runs.transfer import LEAST_SHARE, Weights, init_from
from training.safety.alarms import CollapseAlarms, Collapsed
from training.safety.requests import Requests, Stopped
from training.safety.run_state import RunState
from training.safety.watchdog import Diverged, Watchdog
from training.samples import PreparedStep, SampleStream
from training.step import GanStep, StepReport, averages

LOADER_WORKERS = 3
# Batches fetched before their step: after a GPU's step, several ranks agree on a request one step later.
LOOK_AHEAD = 2
STATE_MINUTES = 15.0


class Score(Protocol):
    """States what the loop needs of a metric's value; `metrics.MetricResult` is one."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...
    def beats(self, other: float | None) -> bool: ...


# Measures G and writes the results beside the snapshot; all ranks call it, and rank 0 alone has a snapshot.
Evaluate = Callable[[Generator, Path | None], Sequence[Score]]


@dataclass
class Options:
    """Chooses what a run does besides training. Nothing here changes a number of the run."""

    run_dir: Path
    device: torch.device
    start: resume.Start = field(default_factory=resume.Start)
    evaluate: Evaluate | None = None  # called at every checkpoint if the configuration has metrics
    init_from: Weights | None = None  # initial weights, taken as far as they fit
    init_share: float = LEAST_SHARE  # share of each network's values that must fit
    minutes: float | None = None  # wall-clock limit of the whole loop
    state_minutes: float = STATE_MINUTES  # minutes between two writes of state-latest.pkl
    keep: Retention | None = None  # which snapshots stay; None: all
    stop_on_collapse: bool = False  # alarms end the run
    tensorboard: bool = False  # also write TensorBoard events
    wandb_mode: str = "off"  # Weights & Biases: off, offline or online
    workers: int = LOADER_WORKERS  # threads that read images ahead
    bench: bool = True  # let cuDNN choose its algorithms by trying them out


class Trainer:
    """Holds the state of a run and the parts of its loop."""

    def __init__(self, config: TrainingConfig, options: Options, dataset: ImageDataset):
        self.config, self.options, self.dataset = config, options, dataset
        self.device = options.device
        torch.backends.cudnn.benchmark = options.bench
        of = family(config.family)
        torch.manual_seed(config.seed)  # the initial weights are the only draw from torch's own generator
        self.G = of.generator(config.generator).to(self.device)
        self.D = of.discriminator(config.discriminator).to(self.device)
        grid = monitor.make_grid(config, dataset, self.G.z_dim)
        self.G.rasterizer = config.rasterizer
        self.G.info = checkpoint.run_info(config, dataset.geometry, grid["labels"])
        self.stats = Collector()
        objective = of.objective(config, self.G, self.D)
        self.networks: dict[str, nn.Module] = {"G": self.G, "D": self.D}
        self.networks |= {name: copy.deepcopy(self.G).eval() for name in averages(config, objective)}
        self.G_ema: Generator = self.networks["G_ema"]  # type: ignore[assignment]
        self.G.low_dtype = self.D.low_dtype = precision.set_up(config.precision, self.device)
        if options.init_from:
            self._init_from(options.init_from)
            options.init_from = None  # its tensors are copied
        if config.compile:
            objective.compile()
        for module in self.networks.values():
            module.requires_grad_(False)  # a phase switches on what it trains
        averaged = {name: self.networks[name] for name in averages(config, objective)}
        self.gan = GanStep(config, self.G, objective, averaged, self.stats)
        self.gan.loss_scale = precision.loss_scale(self.D.low_dtype)
        labels = torch.from_numpy(dataset.labels)
        classes = torch.from_numpy(dataset.classes) if dataset.num_classes else None
        self.stream = SampleStream(config, labels, self.G.z_dim, self.device, classes)
        self.state = RunState(self.networks, self.gan.optimized(), objective.state(), self.stats, grid)
        self.in_step = False  # while it is, weights and counts do not belong together
        self.saved_step = 0  # of the newest checkpoint
        self.reader, self.watchdog = LaggedReader(), Watchdog(config.max_bad_steps)
        self.alarms = CollapseAlarms(of.alarms)
        self.requests = Requests(options.minutes, options.state_minutes)
        self.started = time.monotonic()
        self.seconds = {"maintenance_sec": 0.0, "checkpoint_sec": 0.0}  # of the last ones
        if options.start.state is not None:
            self.state.restore(options.start.state, self.device)
            self.saved_step = self.state.step
            options.start.state = None  # its tensors are copied

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Trains until `total_kimg` images or `minutes` have passed. The first tick is one step.

        Raises Diverged, NonFiniteScene, Collapsed, Stopped after a signal, and what the data set raises; in each case
        the run can be resumed from its last state.
        """
        logger, run = self._begin(), self.state
        total = self.config.total_kimg * 1000
        prepared = ahead(self._prepare, self._steps(total), self.options.workers)
        loader = LookAhead(prepared, LOOK_AHEAD, PreparedStep.send)
        try:
            with self.requests.listening():
                # A state can be from the end of a tick, before its maintenance.
                while (run.nimg < total or run.nimg > run.tick_nimg) and not self.requests.out_of_time:
                    begun, nimg_begun = time.monotonic(), run.nimg
                    goal = run.tick_nimg + (1 if run.tick == 0 else self.config.tick_kimg * 1000)
                    with self._progress_bar(goal - run.nimg, logger) as bar:
                        while run.nimg < min(goal, total) and not self.requests.out_of_time:
                            self._step(loader)
                            bar.update(run.nimg - nimg_begun - bar.n)
                    self._see(self.reader.flush())
                    seconds = time.monotonic() - begun
                    per_kimg = seconds / max(run.nimg - nimg_begun, 1) * 1000
                    last = run.nimg >= total or self.requests.out_of_time
                    self._maintain(logger, last, {"sec_per_tick": seconds, "sec_per_kimg": per_kimg})
        except Diverged as error:
            raise self._diagnosed(error) from None
        except NonFiniteScene as error:  # this state is worth less than the last one that was written
            advice = "lower --glr, and start from a checkpoint from before, with --resume=PKL"
            raise NonFiniteScene(f"the generator has diverged: {error}; {advice}") from None
        except Exception:
            self._save_unsaved()
            raise
        finally:
            loader.close()
            if logger:
                logger.close()

    def _begin(self) -> StatsLogger | None:
        """Says what the run will do, and opens its statistics, on rank 0."""
        if distributed.rank() != 0:
            return None
        options = self.options
        print(describe(self.config, self.dataset, self.G, self.D, self.device, self.state.nimg))
        print(f"Run folder  {options.run_dir}", flush=True)
        self._keep_going("pictures", lambda: monitor.save_reals(self.config, self.dataset, options.run_dir))
        return StatsLogger(
            options.run_dir, options.tensorboard, options.wandb_mode, self.config.to_dict(), self.state.nimg
        )

    def _step(self, loader: LookAhead[PreparedStep]) -> None:
        """Takes one step, and does what it, a clock, a signal or the data set has asked for."""
        run, prepared = self.state, loader.take()
        if loader.error is not None:
            self.requests.fail()
        self.watchdog.keep(self._capture() if self.watchdog.suspicious else None)
        micro_batches = self.stream.cut(prepared)
        self.in_step = True
        report = self.gan.run(run.step, run.nimg, micro_batches, self.requests.own())
        run.step += 1
        run.nimg += self.config.stage_at(run.nimg).batch
        self.in_step = False
        self._see(self.reader.put(report, report.values))
        if self.watchdog.suspicious:
            self._see(self.reader.flush())
        if distributed.world_size() == 1:  # nobody to agree with: a signal that came during the step ends it
            self.requests.agree(self.requests.own())
        if self.requests.stop:
            self._see(self.reader.flush())
            self._save_state()
            if loader.error is not None:
                raise loader.error
            raise Stopped(f"{self.requests.reason()}: stopped after step {run.step}; --resume=latest goes on")
        if self.requests.state_due:
            self._save_state()

    def _see(self, reports: list[tuple[StepReport, torch.Tensor]]) -> None:
        """Takes in what steps have to tell, once it can be read without a wait."""
        for report, values in reports:
            self.requests.agree(report.requests(values))
            self.watchdog.see(report.step, report.bad(values))

    def _maintain(self, logger: StatsLogger | None, last: bool, timing: dict[str, float]) -> None:
        """Writes statistics and status line once per tick, then pictures, metrics and checkpoint where they are due."""
        run, run_dir = self.state, self.options.run_dir
        snapshot = last or run.tick % self.config.snapshot_ticks == 0
        measure = snapshot and self.config.metrics and self.options.evaluate and (run.tick > 0 or last)
        if measure:  # metrics can take hours; a kill during them then costs only them
            self._save_state()
        begun = time.monotonic()
        values = {n: v for n, v in self.stats.reduce().items() if v or not n.startswith("NonFinite/")}
        timing = {
            "total_sec": time.monotonic() - self.started,
            **timing,
            **self.seconds,
            **memory.peaks(self.device),
        }
        self.watchdog.ticks.append({"tick": run.tick, "nimg": run.nimg, **values})
        if logger:
            monitor.print_status(run.tick, run.nimg, timing, values)
            logger.write(run.step, run.nimg, values, timing)
            if last or run.tick % self.config.image_ticks == 0:
                fakes = run_dir / f"fakes{run.nimg // 1000:06d}.png"
                self._keep_going("pictures", lambda: monitor.save_fakes(fakes, self.G_ema, run.grid, self.config))
        run.tick += 1
        run.tick_nimg = run.nimg
        if snapshot:
            path = checkpoint.snapshot_path(run_dir, run.nimg) if logger else None
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
        """Writes the diagnosis, and returns the error with what to do about it."""
        advice = "the last checkpoint is kept; try a smaller --glr and --dlr, or --precision=fp32"
        if distributed.rank() == 0:
            try:
                command = self.watchdog.diagnose(error, self.options.run_dir, str(self.device), self.stream.all_items)
                advice = f"{command} replays the step; {advice}"
            except OSError as full:
                advice = f"no diagnosis was written ({full}); {advice}"
        return error.with_advice(advice)

    # ------------------------------------------------------------------ its parts

    def _steps(self, total: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the images seen before each step to come, and the items of this rank's share."""
        nimg = self.state.nimg
        while nimg < total:
            yield nimg, self.stream.items(nimg)
            nimg += self.config.stage_at(nimg).batch

    def _prepare(self, step: tuple[int, np.ndarray]) -> PreparedStep:
        """Loads and packs a step before its turn, in one of the threads that read ahead."""
        nimg, items = step
        return self.stream.prepare(nimg, self.dataset.load(items))

    def _progress_bar(self, length: float, logger: StatsLogger | None) -> tqdm:
        return tqdm(total=max(int(length), 0), unit="img", leave=False, delay=1, disable=None if logger else True)

    def _init_from(self, weights: Weights) -> None:
        transfers = init_from(weights, self.networks, self.options.init_share)
        if distributed.rank() == 0:
            print("\n".join(weights.lines(transfers)))

    def _capture(self) -> dict[str, Any]:
        return self.state.capture(self.config, self.dataset, self.options.run_dir)

    def _save_state(self) -> None:
        """Writes state-latest.pkl. Every rank calls this, after the same step."""
        self.save(self.options.run_dir / checkpoint.STATE_NAME if distributed.rank() == 0 else None)
        self.requests.state_written()

    def _save_unsaved(self) -> None:
        """Keeps what was computed since the last checkpoint, if it is whole, before an error ends the run.

        Several ranks cannot: the others are elsewhere, and a checkpoint takes all of them.
        """
        if distributed.world_size() == 1 and not self.in_step and self.state.step > self.saved_step:
            self._save_state()

    def _apply_retention(self) -> None:
        assert self.options.keep is not None
        for path in self.options.keep.unwanted(self.options.run_dir):
            path.unlink()
            print(f"Removed {path.name}, which --keep does not want", flush=True)

    def save(self, path: Path | None) -> None:
        """Writes a checkpoint to rank 0's `path`. One that cannot be written costs a line, not the run."""
        begun = time.monotonic()
        self.state.check_ranks(self.device)
        state = self._capture()
        if path is not None and self._keep_going(path.name, lambda: checkpoint.save_checkpoint(path, state)):
            self.saved_step = self.state.step
        self.seconds["checkpoint_sec"] = seconds = time.monotonic() - begun
        self._keep_going("the launcher's note", lambda: distributed.note_snapshot(seconds))

    def _keep_going(self, what: str, write: Callable[[], object]) -> bool:
        """Calls `write`; a file system that refuses does not end a run. Returns whether it was written."""
        try:
            write()
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
            print(f"Warning: {what} not written ({reason}); training goes on", flush=True)
            return False
        return True

    def _measure(self, snapshot: Path | None) -> None:
        """Measures G_ema and notes what is the best so far. All ranks share the work; rank 0 has `snapshot`."""
        assert self.options.evaluate is not None
        for score in self.options.evaluate(self.G_ema, snapshot):
            best = self.state.best.get(score.name)
            if score.beats(best and best["value"]):
                self.state.best[score.name] = {"value": score.value, "nimg": self.state.nimg}


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
