"""Times the metrics and checks their exactness at full size: `python -m benchmarks.metrics --out=metrics.json`.

Takes the Fréchet distance at 2,048 dimensions beside scipy.linalg.sqrtm, and against a long-double reference for 1,000
samples; images a second through the detectors; seconds for KID and for precision and recall on features of full size.
Prints a table and writes JSON; both name the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import scipy
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.long_double import frechet_distance_of_samples
from benchmarks.machine import now, processor
from metrics import Detector, load_detector
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.inception import untrained
from metrics.kid import kid_of, seeded_subsets
from metrics.precision_recall import precision_recall

Report = dict[str, float | int | str]
SECTIONS = ("frechet", "exactness", "detectors", "statistics", "kid", "pr")
SEED = 0


def samples(count: int, size: int, seed: int, decay: float = 3.0) -> np.ndarray:
    """Draws correlated normal samples [count, size] whose deviations fall by exp(-decay), as those of features do."""
    draw = np.random.default_rng(seed)
    scale = np.exp(-decay * np.arange(size) / size)
    return draw.standard_normal((count, size)) * scale @ np.linalg.qr(draw.standard_normal((size, size)))[0] + 0.4


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [F] and the covariance [F, F] of samples [N, F]."""
    return x.mean(0), np.cov(x.T, bias=True)


def least_seconds(run: Callable[[], object], device: str, rounds: int) -> float:
    """Returns the least wall time of `rounds` calls, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        start = now(device)
        run()
        times.append(now(device) - start)
    return min(times[1:])


def time_frechet(size: int, rounds: int) -> Report:
    """Times Cholesky and eigenvalues beside the matrix root, on covariances of full rank; they take turns."""
    (mu_a, s_a), (mu_b, s_b) = moments(samples(3 * size, size, SEED)), moments(samples(3 * size, size, SEED + 1, 2.0))
    ours, root = float("inf"), float("inf")
    value = expected = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        value = frechet_distance(mu_a, s_a, mu_b, s_b)
        middle = time.perf_counter()
        traces = np.trace(s_a + s_b - 2 * scipy.linalg.sqrtm(s_a @ s_b).real)
        expected = float(((mu_a - mu_b) ** 2).sum() + traces)
        ours, root = min(ours, middle - start), min(root, time.perf_counter() - middle)
    return {
        "dimensions": size,
        "frechet_seconds": ours,
        "sqrtm_seconds": root,
        "times_as_fast": root / ours,
        "value": value,
        "relative_difference": abs(value - expected) / abs(expected),
    }


def check_exactness(size: int, count: int) -> Report:
    """Compares a rank-deficient pair with long double, and takes the unclamped distance of a set to itself."""
    x_a, x_b = samples(count, size, SEED), samples(count, size, SEED + 1, 2.0)
    (mu_a, s_a), (mu_b, s_b) = moments(x_a), moments(x_b)
    start = time.perf_counter()
    reference = frechet_distance_of_samples(x_a, x_b)
    seconds = time.perf_counter() - start
    value = frechet_distance(mu_a, s_a, mu_b, s_b)
    return {
        "samples": count,
        "dimensions": size,
        "value": value,
        "relative_error_to_long_double": float(abs(value - reference) / abs(reference)),
        "self_distance_by_trace": frechet_distance(mu_a, s_a, mu_a, s_a) / float(np.trace(s_a)),
        "reference_seconds": seconds,
    }


def time_detectors(device: str, images: int, rounds: int) -> Report:
    """Counts the images of 256 px a second through each detector."""
    report: Report = {"images": images}
    batch = torch.randint(0, 256, (images, 3, 256, 256), dtype=torch.uint8).to(device)
    detectors: dict[str, Detector] = {
        "tiny": load_detector("tiny", device),
        "inception": load_detector("untrained", device),
        "vgg": load_detector("untrained", device, "vgg"),
    }
    for name, detector in detectors.items():
        report[f"{name}_images_per_second"] = images / least_seconds(partial(detector, batch), device, rounds)
    return report | compare_layouts(batch, device, rounds)


def compare_layouts(batch: Tensor, device: str, rounds: int) -> Report:
    """Times Inception with weights in channels last, as detectors have them, and in bfloat16, against plain ones.

    The three take turns. Features are compared too: the untrained network's, which magnify rounding more than trained
    ones would.
    """
    ours, plain = load_detector("untrained", device), untrained().to(device)
    low = partial(_in_bfloat16, ours, torch.device(device).type)
    calls: dict[str, Callable[[Tensor], Tensor]] = {"plain": plain, "channels_last": ours, "bfloat16": low}
    features = {name: call(batch) for name, call in calls.items()}
    times = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name] = min(times[name], least_seconds(partial(call, batch), device, 1))
    report: Report = {}
    for name in ("channels_last", "bfloat16"):
        error = (features[name] - features["plain"]).norm() / features["plain"].norm()
        report[f"inception_{name}_time_over_plain"] = times[name] / times["plain"]
        report[f"inception_{name}_relative_error"] = float(error)
    return report


def _in_bfloat16(detector: Detector, device_type: str, batch: Tensor) -> Tensor:
    with torch.autocast(device_type, torch.bfloat16):
        return detector(batch).float()


def time_statistics(device: str, size: int, rounds: int) -> Report:
    """Counts the features a second into mean and covariance in float64."""
    stats, batch = FeatureStats(size, device), torch.randn(256, size, device=device)
    return {"dimensions": size, "features_per_second": 256 / least_seconds(lambda: stats.add(batch), device, rounds)}


def time_kid(device: str, size: int, count: int) -> Report:
    """Times KID of `count` real and generated features."""
    real, fake = torch.randn(count, size, device=device), 1.1 * torch.randn(count, size, device=device)
    start = time.perf_counter()
    mean, std = kid_of(real, fake, seeded_subsets(SEED, count, count))
    return {"features": count, "dimensions": size, "seconds": time.perf_counter() - start, "value": mean, "std": std}


def time_pr(device: str, size: int, count: int) -> Report:
    """Times precision and recall of `count` real and generated features."""
    real, fake = torch.randn(count, size, device=device), torch.randn(count, size, device=device)
    start = time.perf_counter()
    precision, recall = precision_recall(real, fake)
    seconds = time.perf_counter() - start
    return {"features": count, "dimensions": size, "seconds": seconds, "precision": precision, "recall": recall}


@click.command()
@click.option("--only", default=",".join(SECTIONS), show_default=True, help="comma list")
@click.option("--dimensions", default=2048, show_default=True, help="of the features of Fréchet, KID and statistics")
@click.option("--samples", "sample_count", default=1000, show_default=True, help="of the rank-deficient pair")
@click.option("--features", default=10_000, show_default=True, help="reals and fakes of KID and of pr")
@click.option("--images", default=16, show_default=True, help="a batch through the detectors")
@click.option("--rounds", default=3, show_default=True, help="the least time of so many counts")
@click.option("--threads", type=int, help="CPU threads; by default PyTorch's choice")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(), help="JSON file")
def main(
    only: str,
    dimensions: int,
    sample_count: int,
    features: int,
    images: int,
    rounds: int,
    threads: int | None,
    device: str,
    out: str | None,
) -> None:
    """Print and write what the metrics cost and how exact they are."""
    if threads is not None:
        torch.set_num_threads(threads)
    sections: dict[str, Callable[[], Report]] = {
        "frechet": lambda: time_frechet(dimensions, rounds),
        "exactness": lambda: check_exactness(dimensions, sample_count),
        "detectors": lambda: time_detectors(device, images, rounds),
        "statistics": lambda: time_statistics(device, dimensions, rounds),
        "kid": lambda: time_kid(device, dimensions, features),
        "pr": lambda: time_pr(device, 2 * dimensions, features),
    }
    wanted = only.split(",")
    if unknown := sorted(set(wanted) - set(sections)):
        raise click.ClickException(f"--only={only}: unknown {', '.join(unknown)}; legal are {', '.join(sections)}")
    machine = {
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "scipy": scipy.__version__,
    }
    click.echo(" ".join(f"{key}={value}" for key, value in machine.items()))
    results: dict[str, Report] = {}
    for name in wanted:
        results[name] = sections[name]()
        for key, value in results[name].items():
            click.echo(
                f"{name:12s} {key:32s} {value:.6g}" if isinstance(value, float) else f"{name:12s} {key:32s} {value}"
            )
    if out:
        Path(out).write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
