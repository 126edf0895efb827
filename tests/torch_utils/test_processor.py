"""Products do not depend on where their operands lie in memory; what asks for that knows the processor."""

from pathlib import Path

import pytest
import torch

from torch_utils import processor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_of_a_part_is_that_of_its_copy(dtype):
    differ = []
    for rows in (1, 2, 4, 100):
        for inner, out in ((8, 300), (12, 3), (49, 24), (209, 300)):
            part = torch.randn(2 * rows, inner + 13, dtype=dtype)[rows:, 5 : 5 + inner]
            weight = torch.randn(out, inner, dtype=dtype)
            copy = part.clone(memory_format=torch.contiguous_format)
            if not torch.equal(part @ weight.T, copy @ weight.T):
                differ.append((rows, inner, out))
    assert differ == []


def test_the_vendor_is_read_where_linux_states_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for text, intel in (("vendor_id\t: GenuineIntel\n", True), ("vendor_id\t: AuthenticAMD\n", False), ("", False)):
        (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + text)
        monkeypatch.setattr(processor, "CPUINFO", str(tmp_path / "cpuinfo"))
        assert processor.is_intel() is intel
    monkeypatch.setattr(processor, "CPUINFO", str(tmp_path / "none"))
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6, GenuineIntel")
    assert processor.is_intel()
