"""From a command line to a configuration: what stages of a run take from it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from training.families.cgs.generator import Generator
from training.presets import presets, resolve
from training.runs import batch_memory, launch
from training.samples import Stage

DATA = SimpleNamespace(resolution=32, index_list="all", has_masks=True)


def staged(batch_gpu=8):
    stages = (Stage(0, 32, 16, batch_gpu, 0.004, 0.003), Stage(4000, 32, 8, batch_gpu, 0.002, 0.001))
    return dataclasses.replace(resolve("micro", data=""), stages=stages)


def test_an_option_reaches_every_stage():
    config = launch.resolve_config(DATA, "", base=staged(), fields={"g_lr": 0.01, "batch": 8, "seed": 3})
    assert [stage.g_lr for stage in config.stages] == [0.01, 0.01] and [s.batch for s in config.stages] == [8, 8]
    assert [stage.d_lr for stage in config.stages] == [0.003, 0.001]  # was not given
    assert config.stage_at(0).from_nimg == 0 and config.stage_at(4000).d_lr == 0.001 and config.seed == 3


def test_micro_batches_shrink_in_every_stage():
    config = launch.resolve_config(DATA, "", ranks=2, base=staged())
    assert config.batch_gpu == 4 and [stage.batch_gpu for stage in config.stages] == [4, 4]
    assert list(launch.batch_sizes(staged(), 1, 16)) == [16, 8, 4]  # groups of 4 samples share a statistic


def published_schedules(preset, **options):
    """Returns what the published command lines set where they start from weights, of a run of `preset`."""
    config = resolve(preset, data="")
    size = config.resolution
    data = SimpleNamespace(resolution=size, index_list="all", has_masks=True, num_classes=0, class_problem=None)
    found = launch.resolve_config(data, "", preset=preset, **options)
    names = ("blur_sigma", "ema_rampup", "augment_kimg", "swap_fade_kimg")
    values = {name: getattr(found.objective, name) for name in names if hasattr(found.objective, name)}
    return values | {"background_nimg": getattr(found.generator, "background_nimg", None)}


@pytest.mark.parametrize("preset", ["cgs512", "gsgan-ffhq512", "gghead-afhq512", "epigraf-ffhq512"])
def test_a_start_from_weights_needs_no_warm_up(preset):
    """As published; EpiGRAF's swaps fade all the same there."""
    cold, warm = published_schedules(preset), published_schedules(preset, warm=True)
    assert (cold["blur_sigma"], cold["ema_rampup"], cold["augment_kimg"]) == (10, 0.05, 500)
    assert (warm["blur_sigma"], warm["augment_kimg"]) == (0, 100) and warm["ema_rampup"] >= 1e6
    faded = {"gsgan-ffhq512": 0, "gghead-afhq512": 0, "epigraf-ffhq512": 1000}.get(preset)
    assert warm.get("swap_fade_kimg") == faded and cold.get("swap_fade_kimg") in (1000, None)
    assert (cold["background_nimg"], warm["background_nimg"]) in ((50_000, 0), (None, None))


def test_what_is_given_beats_a_warm_start():
    def of(**fields):
        return published_schedules(
            "gsgan-ffhq512", warm=True, fields={k.replace("__", "."): v for k, v in fields.items()}
        )

    assert of(objective__blurred=True)["blur_sigma"] == 10  # --resume-blur
    assert of(objective__blur_sigma=3.0)["blur_sigma"] == 3
    assert of(objective__augment_kimg=400.0, generator__background_nimg=7) == of() | {
        "augment_kimg": 400, "background_nimg": 7
    }  # fmt: skip
    kept = launch.resolve_config(DATA, "", base=resolve("micro", data=""), warm=True)  # a run that goes on
    assert kept.objective.blur_sigma == resolve("micro", data="").objective.blur_sigma > 0


GIB = 2**30


@pytest.fixture(scope="module")
def published():
    """Returns the estimate for cgs512 in bfloat16, which takes two seconds."""
    return batch_memory.estimate(resolve("cgs512", data=""), torch.bfloat16)


@pytest.mark.parametrize(("gib", "expected"), [(80, 32), (40, 32), (24, 16), (16, 4), (8, 4)])
def test_a_gpu_gets_the_micro_batches_that_fit_its_memory(gib, expected, monkeypatch, published):
    monkeypatch.setattr(launch.precision, "resolve", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(batch_memory, "estimate", lambda config, low: published)
    data, gpu = SimpleNamespace(resolution=512, index_list="all", has_masks=True), launch.Gpu("cuda:0", gib * GIB)
    assert launch.resolve_config(data, "", gpu=gpu).batch_gpu == expected


def test_what_a_step_keeps_is_counted(published):
    """Of cgs512 an image in D 294 MB and a scene in G 379 MB, counted apart, and the rasteriser's.

    Those were counted before bias and activation were one operation, which keeps less.
    """
    views = 4 * (240_128 * batch_memory.SPLAT_BYTES + 512**2 * batch_memory.PIXEL_BYTES)
    assert 0.7 * 294e6 < published.judged < 294e6
    assert 0.7 * 379e6 < published.generated - views < 379e6
    assert [published.in_a_part(size) for size in (4, 8, 16, 32)] == [16, 32, 32, 32]
    whole = published.fixed + 8 * published.generated + 32 * published.judged
    assert published.of(8) == whole and published.of(16) == whole + 8 * published.generated


def test_d_may_judge_fewer_at_once_for_less_memory():
    config = resolve("cgs512", data="")
    sizes = {}
    for at_once in (0, 32, 8):
        found = batch_memory.estimate(
            dataclasses.replace(config, objective=config.objective.changed(judged_at_once=at_once)), torch.bfloat16
        )
        sizes[at_once] = found.of(32) / GIB
    assert sizes[8] < sizes[32] < 0.6 * sizes[0]


def extreme_networks() -> list[str]:
    """Names of each family whose scenes are splats a preset of the fewest and of the most pixels."""
    found = {}
    for name, (of, preset) in presets().items():
        if of.generator.makes_splats:
            found.setdefault(of.name, []).append((preset.generator.resolution, name))
    return sorted({name for sizes in found.values() for _, name in (min(sizes), max(sizes))})


@pytest.mark.parametrize("name", extreme_networks())
def test_every_family_of_splats_is_estimated(name):
    """Networks that need numbers, or whose calls have changed, fail here and not on a user's GPU."""
    found = batch_memory.estimate(resolve(name, data=""), torch.bfloat16)
    parameters = found.fixed - batch_memory.RUNTIME_BYTES
    assert parameters > 10e6 and found.of(2) - found.of(1) > 1e6


@pytest.mark.parametrize(
    "look", [lambda ws: ws.nonzero(), lambda ws: ws.sum().item(), lambda ws: bool(ws.any()), lambda ws: ws.tolist()]
)
def test_a_network_that_looks_at_numbers_is_not_estimated(look, monkeypatch):
    monkeypatch.setattr(Generator, "synthesis", lambda self, ws: look(ws))
    assert batch_memory.estimate(resolve("micro", data=""), None) is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [(lambda ws: ws @ ws.new_zeros(3, 3), RuntimeError), (lambda ws: ws.flatten(5), IndexError), (int, ValueError)],
)
def test_a_fault_of_a_network_is_not_taken_for_what_cannot_be_told(fault, error, monkeypatch):
    monkeypatch.setattr(Generator, "synthesis", lambda self, ws: fault(ws))
    with pytest.raises(error):
        batch_memory.estimate(resolve("micro", data=""), None)


def test_memory_decides_for_new_runs_of_one_stage_alone(monkeypatch):
    monkeypatch.setattr(launch.precision, "resolve", lambda name, device: None)
    gpu, micro = launch.Gpu("cuda:0", 80 * GIB), resolve("micro", data="")
    assert launch.resolve_config(DATA, "", gpu=gpu, fields={"batch": 32}).batch_gpu == 32
    assert launch.resolve_config(DATA, "", gpu=gpu, fields={"batch": 32}, ranks=2).batch_gpu == 16
    assert launch.resolve_config(DATA, "", gpu=gpu, fields={"batch": 32, "batch_gpu": 4}).batch_gpu == 4
    assert launch.resolve_config(DATA, "", gpu=gpu, base=dataclasses.replace(micro, batch=32)).batch_gpu == 16
    assert launch.resolve_config(DATA, "", gpu=gpu, base=staged()).stages == staged().stages
    assert launch.resolve_config(DATA, "", fields={"batch": 32}).batch_gpu == 16  # on a CPU: the preset's
    monkeypatch.setattr(batch_memory, "estimate", lambda config, low: None)
    assert launch.resolve_config(DATA, "", gpu=gpu, fields={"batch": 32}).batch_gpu == 16


def test_the_smallest_gpu_counts(monkeypatch):
    sizes = [80 * GIB, 24 * GIB, 8 * GIB]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))
    assert launch.smallest_gpu("auto", 2) == launch.Gpu("cuda:1", 24 * GIB)
    assert launch.smallest_gpu("cpu", 2) is None


def test_a_stage_that_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"the stage from 4000 images on: batch=6 is not a multiple of --gpus x"):
        stages = (staged().stages[0], Stage(4000, 32, 6, 4, 0.002, 0.001))
        dataclasses.replace(staged(), stages=stages).check()
    with pytest.raises(ValueError, match="24 px is no whole fraction of 32 px"):
        dataclasses.replace(staged(), stages=(Stage(0, 24, 16, 8, 0.1, 0.1),)).check()
    with pytest.raises(ValueError, match="stages must begin one after the other"):
        dataclasses.replace(staged(), stages=staged().stages[::-1]).check()
    with pytest.raises(ValueError, match="--batch=1 leaves multi-view"):
        stages = (staged().stages[0], Stage(4000, 32, 1, 1, 0.002, 0.001))
        dataclasses.replace(staged(), stages=stages).check()
