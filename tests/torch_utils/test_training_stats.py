"""Statistics of rows whose names change, as those of a network that grows do."""

import pytest
import torch

from torch_utils.training_stats import Collector


def test_rows_may_get_new_names_between_two_reductions():
    stats = Collector()
    stats.report_rows("bad", ["a", "b"], torch.tensor([1.0, 2.0]))
    stats.report_rows("bad", ["a", "b"], torch.tensor([3.0, 2.0]))
    stats.report_rows("bad", ["new", "a", "b"], torch.tensor([5.0, 8.0, 5.0]))
    assert stats.reduce() == pytest.approx({"bad/a": 4.0, "bad/b": 3.0, "bad/new": 5.0})
    stats.report_rows("bad", ["a"], torch.tensor([1.0]))
    assert stats.reduce() == {"bad/a": 1.0}
