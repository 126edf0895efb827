"""Tests the precision rule and the memory setting."""

import pytest
import torch

from torch_utils import memory, precision


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("fp32", "cpu", None),
        ("fp32", "cuda", None),
        ("bf16", "cpu", torch.bfloat16),
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda:1", torch.float16),
        ("auto", "cuda", torch.float16),
        ("auto", "mps", None),
    ],
)
def test_resolve(name, device, expected):
    assert precision.resolve(name, device) == expected


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
