"""Runs scripts on the families of these tests, and compares what they leave."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from torch_utils import distributed
from torch_utils.training_stats import Collector
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.families import FAMILIES
from training.runs import monitor
from training.samples import SampleStream
from training.step import GanStep

TRAIN = ("--tick=0.016", "--network-snap=1", "--img-snap=9", "--metrics=none", "--device=cpu",
         "--no-validate", "--workers=0")  # fmt: skip


def keep_small(patch: pytest.MonkeyPatch) -> None:
    """Lets runs take one thread, and draw few pictures: tests/test_train.py has the whole ones.

    Two that wait for each other's threads on shared cores are many times slower.
    """
    patch.setattr(distributed, "usable_cores", lambda: 1)
    patch.setattr(monitor, "GRID_ROWS", 1)
    patch.setattr(monitor, "save_camera_histogram", lambda *_: None)


def run(command: click.Command, *arguments: object, code: int = 0) -> str:
    """Runs a script and returns what it prints; where it prints a configuration, nothing else."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout if "--dry-run" in arguments and code == 0 else result.output


def train_run(heads: Path, outdir: Path, *arguments: object) -> Path:
    """Trains, and returns the folder of the newest run."""
    run(train.main, f"--data={heads}", f"--outdir={outdir}", *TRAIN, *arguments)
    return max(outdir.iterdir())


def networks_after(config: TrainingConfig, dataset: ImageDataset, starts: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns all tensors of the networks, and of their averages, after steps that begin at so many images."""
    of = FAMILIES[config.family]
    torch.manual_seed(0)
    G, D = of.generator(config.generator), of.discriminator(config.discriminator)
    objective = of.objective(config, G, D)
    step = GanStep(config, G, objective, {name: copy.deepcopy(G) for name in objective.averages()}, Collector())
    stream = SampleStream(config, torch.from_numpy(dataset.labels), G.z_dim, torch.device("cpu"))
    for number, nimg in enumerate(starts):
        step.run(number, nimg, stream.micro_batches(nimg, dataset.load(stream.items(nimg))))
    modules = {"G": G, "D": D, **step.averaged}
    return {f"{name}.{key}": v.numpy() for name, module in modules.items() for key, v in module.state_dict().items()}


def snapshots(run_dir: Path) -> dict[int, Path]:
    """Returns the checkpoints of a run by the images seen."""
    paths = run_dir.glob(checkpoint.SNAPSHOT_PATTERN)
    return dict(sorted((checkpoint.read_progress(path)["nimg"], path) for path in paths))


def assert_equal(one: Path, other: Path) -> None:
    """Compares everything that has a state, bit by bit, in two checkpoints."""
    first, second = checkpoint.load_checkpoint(one), checkpoint.load_checkpoint(other)
    assert first.keys() == second.keys()
    for key in set(first) - {"config", "progress", "checksum"}:
        same: Any = checkpoint.checksum({key: first[key]}) == checkpoint.checksum({key: second[key]})
        assert same, key
    assert first["progress"]["nimg"] == second["progress"]["nimg"]
    assert any(value.any() for value in first["G"].values() if isinstance(value, torch.Tensor))
