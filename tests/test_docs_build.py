"""Tests that docs/build.py makes every picture that the README shows, but for those of benchmarks/learning.py."""

import re

from click.testing import CliRunner
from PIL import Image

from dnnlib import ROOT
from docs.build import FIGURES, main


def test_every_picture_of_the_readme_is_made(checkpoint_path, tmp_path):
    result = CliRunner().invoke(main, [f"--network={checkpoint_path}", f"--outdir={tmp_path}"])
    assert result.exit_code == 0, result.output
    shown = set(re.findall(r"!\[[^]]*\]\(docs/images/([\w-]+)\.png\)", (ROOT / "README.md").read_text()))
    assert shown - {"learning-heads"} == set(FIGURES) == {path.stem for path in tmp_path.glob("*.png")}
    sizes = {path.stem: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert sizes == {"film-strip": (9 * 64, 2 * 64), "hierarchy": (5 * 64, 64), "panels": (8 * 64, 64)}
