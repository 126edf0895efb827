"""Tests the precision rule and the memory setting."""

import pytest
import torch

from gaussian import backend_torch, render
from metrics import registry
from tests.gaussian.scenes import make_cameras, make_scene
from torch_utils import distributed, memory, precision
from training import losses


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("fp32", "cpu", None),
        ("fp32", "cuda", None),
        ("bf16", "cpu", torch.bfloat16),
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda:1", torch.float16),
        ("auto", "mps", None),
    ],
)
def test_resolve(name, device, expected):
    assert precision.resolve(name, device) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_auto_on_a_gpu_follows_its_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolve("auto", "cuda:0") == expected


@pytest.fixture
def tf32():
    """Returns what reads both switches; puts them back to PyTorch's defaults."""
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


@pytest.mark.parametrize(("name", "allowed"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_tf32_follows_the_precision_in_products_and_convolutions_alike(tf32, name, allowed):
    torch.backends.cudnn.allow_tf32 = not allowed
    precision.set_up(name, "cuda")
    assert tf32() == (allowed, allowed)


def test_every_script_starts_without_tf32(tf32):
    precision.allow_tf32(True)
    distributed.initialise("cpu")
    assert tf32() == (False, False)


def test_exact_parts_give_the_switches_back(tf32):
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, False
    with pytest.raises(KeyError), precision.exact_float32():
        assert tf32() == (False, False)
        raise KeyError
    assert tf32() == (True, False)


def test_rasterisation_neighbours_and_metrics_are_exact(tf32, monkeypatch):
    """A camera's position off by a thousandth moves the image by a pixel."""
    precision.allow_tf32(True)
    seen = []

    def watch(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (seen.append((name, *tf32())), original(*a, **k))[1])

    watch(backend_torch, "rasterize")
    watch(torch, "cdist")
    watch(registry, "parse_metric")
    render(make_scene(1, 4), make_cameras(1, 1), 8, backend="torch")
    losses.knn_distance(torch.randn(1, 8, 3), 2)
    with pytest.raises(ValueError, match="nonsense"):
        registry.compute_metric("nonsense", None, None)
    assert seen == [(name, False, False) for name in ("rasterize", "cdist", "parse_metric")]
    assert tf32() == (True, True)


@pytest.mark.parametrize("in_hardware", [True, False])
def test_auto_on_a_cpu_follows_the_hardware(monkeypatch, in_hardware):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: in_hardware)
    assert precision.resolve("auto", torch.device("cpu")) == (torch.bfloat16 if in_hardware else None)


def test_hardware_flags(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\nbugs : none\n")
    assert precision._cpuinfo_flags(cpuinfo) == {"fpu", "avx512f", "avx512_bf16"}
    assert precision._cpuinfo_flags(tmp_path / "missing") == frozenset()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for flags, expected in (({"avx512_bf16"}, True), ({"amx_bf16"}, True), ({"avx512f"}, False)):
        monkeypatch.setattr(precision, "_capability_flags", lambda flags=flags: frozenset(flags))
        assert precision.cpu_has_bfloat16() is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not precision.cpu_has_bfloat16()


def test_illegal_values_are_refused():
    with pytest.raises(ValueError, match=r"fp16.*GPU"):
        precision.resolve("fp16", "cpu")
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16"):
        precision.resolve("half", "cuda")


def test_keep_freed_memory_reports_what_it_did():
    assert memory.keep_freed_memory() in (True, False)
