"""A run whose generator is not finite any more ends in one line, before ten steps were counted."""

from pathlib import Path

from click.testing import CliRunner

import train
from training.data.synthetic.synthesize import synthesize_heads


def test_scenes_that_are_not_finite_end_a_run_by_name(tmp_path: Path) -> None:
    synthesize_heads(tmp_path / "set", 16, 32, seed=0, workers=1)
    arguments = (
        f"--data={tmp_path / 'set' / '32'}", f"--outdir={tmp_path}", "--preset=micro", "--device=cpu", "--kimg=0.016",
        "--metrics=none", "--no-validate", "--workers=0", "--glr=1e18",
    )  # fmt: skip
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 1
    assert not list(tmp_path.rglob("state-latest.pkl"))  # nor would a good one be replaced
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: the generator has diverged: means [") and "lower --glr" in last
