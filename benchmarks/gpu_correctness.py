"""Holds the parts of benchmarks/gpu.py that compare a step with the CPU's, gradient by gradient, and count waits."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import training_step
from benchmarks.gpu import ROOT, Job
from training import presets
from training.samples import SampleStream

ROUNDING = 1e-6  # relative change of weights beside which differences of gradients are stated
SMALL = ("gghead-tiny", "gsgan-tiny", "epigraf-tiny", "pigan-tiny", "cgof-tiny", "cgs-control-tiny")


def correctness(job: Job) -> None:
    """Compares with the twins: single renders by the project's tests, then a whole step."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if job.device == "cuda":
        job.attempt("tests", _cuda_tests, job)
    job.attempt("step", step_against_cpu, job, "micro", ("torch", "gsplat") if job.device == "cuda" else ("cpu",))
    if job.device == "cuda":
        job.attempt("waits", waits, job, "micro")


def _cuda_tests(job: Job) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/gaussian/test_cuda.py"]
    ran = subprocess.run(
        [*command, "-k", "gsplat"], cwd=ROOT, capture_output=True, text=True, timeout=max(job.left() - 20, 5)
    )
    print(ran.stdout[-6000:], ran.stderr[-2000:])
    found = [f"{a}/{b}" for a, b in re.findall(r"images (\S+) gradients (\S+)", ran.stdout)]
    last = (ran.stdout.strip().splitlines() or ["no output"])[-1]
    job.say(f"back-end tests: {last}; errors of images/gradients {' '.join(found)}", failed=ran.returncode or None)


def step_parts(device: str, backend: str, preset: str = "micro", **changes: Any) -> tuple[Any, Any]:
    """Returns a step and its micro-batches, the same numbers on any device. Losses that need a file are left out."""
    config = replace(presets.resolve(preset, data=""), rasterizer=backend, stages=(), **changes)
    without = {name: 0.0 for name in ("recon_weight", "landmark_weight") if hasattr(config.objective, name)}
    config = replace(config, objective=replace(config.objective, **without))  # type: ignore[type-var]
    labels = training_step.FFHQ.orbit(torch.linspace(-0.8, 0.8, training_step.ITEMS)).labels
    torch.manual_seed(0)
    step = training_step.make_step(config, labels, torch.device("cpu"))
    if device != "cpu":  # the same initial weights, then everything of the device
        state = [phase.module.state_dict() for phase in step.phases]
        step = training_step.make_step(config, labels, torch.device(device))
        for phase, weights in zip(step.phases, state, strict=True):
            phase.module.load_state_dict(weights)
    with torch.no_grad():
        for name, parameter in step.G.named_parameters():
            if ".ls_" in name:  # starts at 0, where the scene does not depend on the latent
                parameter.fill_(0.1)
    torch.manual_seed(1)
    stream = SampleStream(config, labels, step.G.z_dim, torch.device(device))
    return step, stream.micro_batches(10**6, training_step.random_batch(config, labels))


def _gradients(device: str, backend: str, preset: str, moved: float = 0.0) -> dict[str, Tensor]:
    """Returns the gradients of every phase of a step by phase and parameter, on the CPU as float64.

    moved: relative size of random changes of all weights beforehand.
    """
    step, micro = step_parts(device, backend, preset, precision="fp32", batch=8, batch_gpu=4)
    found = {}
    if moved:
        with torch.no_grad():
            for parameter in {p for phase in step.phases for p in phase.module.parameters()}:
                parameter.mul_(1 + moved * torch.randn_like(parameter))
    for phase in step.phases:
        step.accumulate(phase, 10**6, micro)
        for name, parameter in phase.module.named_parameters():
            if parameter.grad is not None:
                found[f"{phase.name}/{name}"] = parameter.grad.detach().cpu().double()
    return found


def _worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, tuple[float, str]]:
    """Returns, for each phase, the largest relative difference of a parameter's gradient, and the parameter.

    It is relative to the larger of the gradient's norm and a thousandth of the phase's: where a gradient is zero in
    exact arithmetic, such as that of a bias before a normalisation, there is nothing but rounding.
    """
    if missing := set(found) ^ set(expected):
        raise RuntimeError(f"{len(missing)} gradients are on one side only, such as {min(missing)}")
    whole: dict[str, float] = {}
    for name, grad in expected.items():
        phase = name.partition("/")[0]
        whole[phase] = math.hypot(whole.get(phase, 0.0), float(grad.norm()))
    worst: dict[str, tuple[float, str]] = {}
    for name, grad in expected.items():
        phase = name.partition("/")[0]
        error = float((found[name] - grad).norm()) / max(float(grad.norm()), whole[phase] / 1000)
        worst[phase] = max(worst.get(phase, (-1.0, "")), (error, name))
    return worst


def step_against_cpu(job: Job, preset: str, backends: tuple[str, ...]) -> None:
    """States the largest relative difference of a gradient of each phase between the device and the CPU's reference.

    Beside it stands how much the reference's own gradients change where all weights change by ROUNDING: a splat that
    passes a threshold, or a neighbour that another one replaces, shows far above rounding.
    """
    slow = _gradients("cpu", "torch", preset)
    own = _worst(_gradients("cpu", "torch", preset, ROUNDING), slow)
    for backend in backends:
        worst = _worst(_gradients(job.device, backend, preset), slow)
        said = ", ".join(f"{error:.1e} ({own[phase][0]:.1e}) {name}" for phase, (error, name) in worst.items())
        text = f"gradients of a step of {preset} with {backend} against the CPU's torch (that with weights changed by "
        text += f"{ROUNDING:.0e}): {said}"
        job.say(text, preset=preset, backend=backend, worst=worst, own=own)


def waits(job: Job, preset: str) -> None:
    """Counts what makes the host wait for the device in one step."""
    step, micro = step_parts("cuda", "auto", preset)
    step.run(0, 10**6, micro)
    torch.cuda.synchronize()
    with tempfile.TemporaryFile() as written, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        errors = os.dup(2)
        os.dup2(written.fileno(), 2)  # what waits inside a library is said there, without a place
        try:
            step.run(1, 10**6, micro)
        finally:
            os.dup2(errors, 2)
            os.close(errors)
            torch.cuda.set_sync_debug_mode("default")
        written.seek(0)
        inside = written.read().count(b"synchronizing CUDA operation")
    caught = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    places = Counter(f"{w.filename.removeprefix(str(ROOT) + '/')}:{w.lineno}" for w in caught)
    if inside:
        places["inside libraries"] = inside
    said = ", ".join(f"{count} x {place}" for place, count in places.most_common(8))
    job.say(f"{sum(places.values())} waits in a step of {preset}: {said}", preset=preset, waits=dict(places))


def families(job: Job) -> None:
    """Compares a step of every family with the CPU's, gradient by gradient, and counts its waits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for preset in SMALL[: 2 if job.small else None]:
        job.attempt(f"{preset}, gradients", step_against_cpu, job, preset, ("auto",))
        if job.device == "cuda":
            job.attempt(f"{preset}, waits", waits, job, preset)
