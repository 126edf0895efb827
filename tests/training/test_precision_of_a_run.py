"""What a trainer makes of --precision and --compile; no step is run."""

import pytest
import torch

from tests.training.gan import micro_config
from torch_utils import precision
from training import training_loop
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import ImageDataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns a set of eight heads."""
    folder = tmp_path_factory.mktemp("data") / "heads"
    synthesize_heads(folder, 8, 32, workers=1)
    return ImageDataset(folder / "32")


def trainer(data, tmp_path, **changes):
    options = training_loop.Options(tmp_path, torch.device("cpu"), workers=0)
    return training_loop.Trainer(micro_config(background="white", **changes), options, data)


@pytest.mark.parametrize(
    ("low", "scale", "tf32"), [(torch.float16, 1024.0, True), (torch.bfloat16, 1.0, True), (None, 1.0, False)]
)
def test_both_networks_take_the_low_type_and_float16_a_scale(data, tmp_path, monkeypatch, low, scale, tf32):
    monkeypatch.setattr(precision, "resolve", lambda name, device: low)
    made = trainer(data, tmp_path)
    assert (made.G.low_dtype, made.D.low_dtype, made.G_ema.low_dtype) == (low, low, None)
    assert made.gan.loss_scale == scale
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    precision.allow_tf32(False)


def test_the_networks_are_compiled_when_asked_for(data, tmp_path):
    """PyTorch compiles at the first call. The networks, which penalties and pictures go through, do not change."""
    assert trainer(data, tmp_path).gan.objective.outputs is None
    made = trainer(data, tmp_path, compile=True)
    objective = made.gan.objective
    assert objective.synthesis is not None and objective.outputs is not None
    assert "outputs" not in vars(made.D) and "synthesis" not in vars(made.G)
