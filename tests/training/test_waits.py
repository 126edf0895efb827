"""A whole step of any family asks the device for nothing, and no copy to it makes the host wait.

It runs on the device `meta`, where everything that needs a value of the device raises: item, tolist, bool, nonzero.
Copies are counted where they are dispatched; tensors made from lists or numbers on a device, which PyTorch copies
below the dispatcher, and indices that are lists are counted where they are asked for.
"""

import dataclasses
import sys
import traceback
import types

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gaussian import rendering
from tests.families.small_cgof import small_regressor
from tests.training.gan import RELATIVISTIC, micro_config
from torch_utils.training_stats import Collector
from torch_utils.transfer import Transfer
from training.checkpoint import run_info
from training.dataset import Batch
from training.families import FAMILIES, family
from training.morphable.head import procedural_head
from training.networks.discriminator import DiscriminatorConfig
from training.presets import resolve
from training.published.eg3d import geometry
from training.samples import SampleStream
from training.step import GanStep

META = torch.device("meta")
aten = torch.ops.aten
MADE_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


def _where():
    frames = [f for f in traceback.extract_stack() if "/tests/" not in f.filename and "/torch/" not in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}"


class Copies(TorchDispatchMode):
    """Notes copies from the host to the device `meta`: where each comes from, and whether the host waits for it."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[-1 if func is aten._to_copy.default else 1]
            if source.device.type == "cpu" and result.device == META:
                self.seen.append((_where(), not (kwargs or {}).get("non_blocking", False)))
        return result


def _of_host(index):
    """Tells whether a part of an index is a list, or a tensor of the host, which a GPU gets a copy of."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, list) or (isinstance(p, torch.Tensor) and p.ndim and p.device != META) for p in parts)


class FromNumbers(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host on the device `meta`, and indices of the host."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = func in MADE_OF_NUMBERS and result.device == META and not isinstance(args[-1], torch.Tensor)
        if made or (func in INDEXING and args[0].device == META and _of_host(args[1])):
            self.seen.append((_where(), True))
        return result


class NoAdam:
    """Stands in for fused Adam, which refuses the device."""

    def __init__(self, parameters, lr, **options):
        self.defaults, self.param_groups = {"fused": options["fused"]}, [{"lr": lr, "params": list(parameters)}]

    def step(self):
        pass


def gsplat_stand_in(means, quats, scales, opacities, colors, viewmats, Ks, width, height, render_mode, **others):
    """Returns images that depend on everything that gets a gradient; gsplat's own wait is not ours to count."""
    summed = sum(t.sum() for t in (means, quats, scales, opacities, colors))
    shape = (*viewmats.shape[:2], height, width)
    images = summed + means.new_zeros(*shape, colors.shape[-1] + (render_mode == "RGB+D"))
    return images, summed + means.new_zeros(*shape, 1), {}


@pytest.fixture
def gpu(monkeypatch):
    """Lets the device `meta` stand in for a GPU: what has no meta device, or asks for a GPU by name, takes it."""
    autocast = torch.autocast

    def with_meta(kind, **options):
        return autocast("cpu" if kind == "meta" else kind, **options)

    monkeypatch.setattr(torch, "autocast", with_meta)
    monkeypatch.setattr(torch.optim, "Adam", NoAdam)
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=gsplat_stand_in))
    monkeypatch.setitem(rendering.DEVICE_BACKENDS, "meta", ("gsplat",))
    monkeypatch.setattr(rendering, "_unavailable", lambda name: None)


class MetaStep:
    """Holds a step of a configuration on the device `meta`, and counts the renderings."""

    def __init__(self, config, low_dtype=None):
        of, seen = family(config.family), geometry()
        self.labels = seen.orbit(torch.linspace(-0.8, 0.8, 50)).labels
        with META:
            self.G, D = of.generator(config.generator), of.discriminator(config.discriminator)
        self.G.info = run_info(config, seen, self.labels)
        self.G.low_dtype = D.low_dtype = low_dtype
        objective = of.objective(config, self.G, D)
        with META:
            averaged = {name: of.generator(config.generator) for name in objective.averages()}
        for network in (self.G, D, *averaged.values()):
            network.requires_grad_(False)
        self.renders, render = 0, self.G.render

        def counted(*args, **kwargs):
            self.renders += 1
            return render(*args, **kwargs)

        self.G.render = counted
        self.step = GanStep(config, self.G, objective, averaged, Collector())
        self.stream = SampleStream(config, self.labels, self.G.z_dim, META)
        images = torch.zeros(config.batch, 3, config.resolution, config.resolution, dtype=torch.uint8)
        self.batch = Batch(images, images[:, :1], self.labels[self.stream.items(0)])

    def run(self, *requests):
        self.step.run(0, 0, self.stream.micro_batches(0, self.batch), requests)  # step 0: all phases are due

    def copies(self):
        """Runs a step, and returns where copies to the device come from, and whether the host waits for each."""
        self.run()  # constants are made once in a run
        copies = Copies()
        with copies, FromNumbers(copies.seen):
            self.run(False, True)
        return copies.seen


@pytest.mark.parametrize(
    ("objective", "changes"), [({}, {}), (RELATIVISTIC, {"background": "white"}), ({}, {"label_noise": 0.5})]
)
def test_a_step_copies_once_for_each_type_and_never_waits(gpu, objective, changes):
    meta = MetaStep(micro_config(4, objective=objective, **changes))
    seen = meta.copies()
    assert [where for where, waits in seen if waits] == []
    assert len(seen) == 2, seen
    assert meta.renders == 2 * (4 if not objective else 6)  # of 2 steps: 2 micro-batches, in G and D, and R2


def small_config(name, regressor):
    """Returns the configuration of a small preset, with batches of 4 and everything that its losses read."""
    config = dataclasses.replace(resolve(name, data=""), batch=4, batch_gpu=4, stages=())
    if hasattr(config.objective, "regressor"):
        config = dataclasses.replace(config, objective=config.objective.changed(regressor=str(regressor)))
    if config.family == "eg3d":  # has no small member
        sizes = {"resolution": 32, "plane_resolution": 32, "channel_max": 32, "samples": 8, "fine_samples": 8}
        D = DiscriminatorConfig.sized(32, channel_base=512, channel_max=32, mapping_depth=2)
        config = dataclasses.replace(config, generator=config.generator.changed(**sizes), discriminator=D)
    return config


SMALL = [name for of in FAMILIES.values() for name in of.presets if name.endswith("tiny") or of.name == "eg3d"]


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_every_family_never_waits(gpu, tmp_path, name):
    config = small_config(name, small_regressor(tmp_path, procedural_head().key))
    meta = MetaStep(config, torch.bfloat16)
    seen = meta.copies()
    assert [where for where, waits in seen if waits] == []
    assert seen and meta.renders, "nothing was copied, or drawn: the step did not run"


def test_every_family_has_a_small_member():
    assert {resolve(name, data="").family for name in SMALL} == set(FAMILIES)


def test_the_counter_sees_what_it_counts():
    """Every way in which a host's numbers reach a device, each seen once."""
    copies, there, here = Copies(), torch.zeros(2, device=META), torch.zeros(2)
    ways = [
        lambda: here.to(META),
        lambda: there.copy_(here),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: there.new_tensor([1.0]),
        lambda: torch.as_tensor([1.0], device=META),
        lambda: there[[1, 0]],
        lambda: there.__setitem__([1, 0], there),
    ]
    with copies, FromNumbers(copies.seen):
        for way in ways:
            way()
        here.to(META, non_blocking=True)
        torch.zeros(2, device=META)[0] = 3.0  # filled on the device
        _ = there[torch.zeros(1, dtype=torch.int64, device=META)], there[:1], there[None]
    assert [waits for _, waits in copies.seen] == [True] * len(ways) + [False]


def test_a_transfer_packs_by_type_and_gives_back_what_it_got():
    given = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7, dtype=torch.uint8),
        "c": torch.randn(2, 1, 4),
        "d": torch.zeros(0, 3),
    }
    packed = Transfer(given, META)
    assert {dtype: len(buffer) for dtype, buffer in packed._buffers.items()} == {torch.float32: 128, torch.uint8: 64}
    packed.device = torch.device("cpu")  # unpacked where values can be read
    packed.send()
    taken = packed.take()
    assert taken.keys() == given.keys() and all(torch.equal(taken[name], given[name]) for name in given)
    at_home = Transfer(given, torch.device("cpu")).take()
    assert all(at_home[name] is given[name] for name in given)


def test_a_gpu_gets_page_locked_memory_on_a_stream_of_its_own(monkeypatch):
    """The order of calls, told by stand-ins: pack into pinned memory, copy on the side, let the step's stream wait."""
    told = []

    class Stream:
        def record_event(self):
            told.append("event")
            return "arrived"

        def wait_event(self, event):
            told.append(f"wait for {event}")

    class Buffer:
        def __init__(self, host):
            self.host = host

        def __getitem__(self, rows):
            return self.host[rows]

        def record_stream(self, stream):
            told.append("kept for the stream")

    def empty(size, dtype, pin_memory):
        told.append(f"pinned {pin_memory}")
        return torch.zeros(size, dtype=dtype)

    class Beside:
        def __init__(self, stream):
            pass

        def __enter__(self):
            told.append("beside")

        def __exit__(self, *error):
            told.append("back")

    def copy(self):
        told.append("copy")
        self._buffers = {dtype: Buffer(host) for dtype, host in self._buffers.items()}

    monkeypatch.setattr("torch_utils.transfer.torch.empty", empty)
    monkeypatch.setattr("torch.cuda.stream", Beside)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream())
    monkeypatch.setattr("torch_utils.transfer._stream", lambda device: Stream())
    monkeypatch.setattr(Transfer, "_copy", copy)
    transfer = Transfer({"a": torch.ones(2)}, torch.device("cuda", 0))
    transfer.send()
    transfer.send()
    assert told == ["pinned True", "beside", "copy", "back", "event"]
    del told[:]
    assert torch.equal(transfer.take()["a"], torch.ones(2)) and told == ["wait for arrived", "kept for the stream"]
    transfer.take()
    assert told == ["wait for arrived", "kept for the stream"]
