"""Tests that docs/build.py makes the pictures of README.md and docs/films.md that no benchmark makes."""

import re

from click.testing import CliRunner
from PIL import Image

from dnnlib import ROOT
from docs.build import FIGURES, main

MADE_FROM_TRAINED_NETWORKS = {
    "heads-demo",
    "cars-tiny",
    "heads-pigan",
    "heads-epigraf",
    "learning-heads",
    "learning-seeds",
    "comparison-tiny",
}


def test_every_picture_of_the_readme_is_made(checkpoint_path, tmp_path):
    result = CliRunner().invoke(main, [f"--network={checkpoint_path}", f"--outdir={tmp_path}"])
    assert result.exit_code == 0, result.output
    pages = "".join((ROOT / page).read_text() for page in ("README.md", "docs/index.md", "docs/films.md"))
    shown = set(re.findall(r"!\[[^]]*\]\((?:docs/)?images/([\w-]+)\.png\)", pages))
    assert shown - MADE_FROM_TRAINED_NETWORKS == set(FIGURES) == {path.stem for path in tmp_path.glob("*.png")}
    sizes = {path.stem: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert sizes == {"film-strip": (9 * 64, 2 * 64), "hierarchy": (5 * 64, 64), "panels": (8 * 64, 64)}
