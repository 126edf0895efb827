"""A whole step copies twice to the device, without a wait, and asks the device for nothing.

It runs on the device `meta`, where everything that needs a value of the device raises: item, tolist, bool, nonzero.
Copies are counted where they are dispatched; tensors made from lists or numbers on a device, which PyTorch copies
below the dispatcher, are counted where they are asked for.
"""

import sys
import traceback
import types

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gaussian import Rendering, backend_gsplat
from tests.training.gan import RELATIVISTIC, micro_config
from torch_utils.training_stats import Collector
from torch_utils.transfer import Transfer
from training.dataset import Batch
from training.families import adversarial, family
from training.samples import SampleStream
from training.step import GanStep

META = torch.device("meta")
MADE_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


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
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1 if func is torch.ops.aten._to_copy.default else 1]
            if source.device.type == "cpu" and result.device == META:
                self.seen.append((_where(), not (kwargs or {}).get("non_blocking", False)))
        return result


class FromNumbers(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host on the device `meta`."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in MADE_OF_NUMBERS and result.device == META and not isinstance(args[-1], torch.Tensor):
            self.seen.append((_where(), True))
        return result


class NoAdam:
    """Stands in for fused Adam, which refuses the device."""

    def __init__(self, module, lr, betas):
        self.defaults, self.param_groups = {"fused": True}, [{"lr": lr, "params": list(module.parameters())}]

    def step(self):
        pass


def gsplat_stand_in(means, quats, scales, opacities, colors, viewmats, Ks, width, height, backgrounds=None, **others):
    """Returns images that depend on everything that gets a gradient; gsplat's own wait is not ours to count."""
    summed = sum(t.sum() for t in (means, quats, scales, opacities, colors))
    lead = viewmats.shape[:2]
    images = summed + means.new_zeros(*lead, height, width, 3)
    return images, summed + means.new_zeros(*lead, height, width, 1), {}


def make_meta_step(monkeypatch, batch_gpu, **changes):
    monkeypatch.setattr(adversarial, "_adam", NoAdam)
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=gsplat_stand_in))
    config = micro_config(batch_gpu, **changes)
    of = family(config.family)
    with META:
        G, D, G_ema = (
            of.generator(config.generator),
            of.discriminator(config.discriminator),
            of.generator(config.generator),
        )
    renders = []

    def render(scene, cameras, resolution=None, background=None, at=None):
        renders.append(cameras.shape)
        size = resolution or G.resolution
        lead = (*cameras.shape, 3)
        return Rendering(
            *backend_gsplat.rasterize(scene, cameras, size, size, background.expand(lead), None, 1.0, False)
        )

    G.render = render
    labels = torch.randn(50, 25)
    step = GanStep(config, G, of.objective(config, G, D), {"G_ema": G_ema}, Collector())
    return step, SampleStream(config, labels, G.z_dim, META), labels, renders


@pytest.mark.parametrize(
    ("objective", "changes"), [({}, {}), (RELATIVISTIC, {"background": "white"}), ({}, {"label_noise": 0.5})]
)
def test_a_step_copies_once_for_each_type_and_never_waits(monkeypatch, objective, changes):
    step, stream, labels, renders = make_meta_step(monkeypatch, 4, objective=objective, **changes)
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(images, images[:, :1], labels[stream.items(0)])
    step.run(0, 0, stream.micro_batches(0, batch))  # constants are made once in a run
    copies = Copies()
    with copies, FromNumbers(copies.seen):
        step.run(0, 0, stream.micro_batches(0, batch), [False, True])  # step 0: R1, and R2 where it acts, are due
    assert [where for where, waits in copies.seen if waits] == []
    assert len(copies.seen) == 2, copies.seen
    assert len(renders) == 2 * (4 if not objective else 6)  # of 2 steps: 2 micro-batches, in G and D, and R2


def test_the_counter_sees_what_it_counts():
    """Every way in which a host's numbers reach a device, each seen once."""
    copies, there, here = Copies(), torch.zeros(2, device=META), torch.zeros(2)
    ways = [
        lambda: here.to(META),
        lambda: there.copy_(here),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: there.new_tensor([1.0]),
        lambda: torch.as_tensor([1.0], device=META),
    ]
    with copies, FromNumbers(copies.seen):
        for way in ways:
            way()
        here.to(META, non_blocking=True)
        torch.zeros(2, device=META)[0] = 3.0  # filled on the device
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
