"""A reader gets from the command line to the optimiser in six calls."""

import inspect
from pathlib import Path

import torch
from click.testing import CliRunner

import train
from dnnlib import ROOT
from training.data.synthetic.synthesize import synthesize_heads

MOST_CALLS = 6


def test_from_the_command_line_to_the_optimiser(tmp_path, monkeypatch):
    images = synthesize_heads(tmp_path / "set", 8, 32, seed=0, samples=2, workers=1).images
    chains = []
    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        files = [(Path(frame.filename), frame.function) for frame in reversed(inspect.stack())]
        chains.append([name for path, name in files if path == ROOT / "train.py" or ROOT / "training" in path.parents])
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    arguments = ["--preset=micro", "--kimg=0.004", "--batch=4", "--metrics=none", "--device=cpu", "--no-validate"]
    result = CliRunner().invoke(train.main, [f"--data={images}", f"--outdir={tmp_path}", *arguments])
    assert result.exit_code == 0, result.output
    (chain,) = {tuple(chain) for chain in chains}
    assert chain[0] == "main" and len(chain) <= MOST_CALLS, chain  # the last of them calls step()
