"""Classes of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bad_input import spoil
from tests.bad_input.case import Case
from tests.bad_input.cases_epigraf import enlarged

_GOOD = ("--network={NETWORK}", "--outdir={TMP}/out", "--device=cpu")


def _classed(first: object, large: bool = True, **more: Any) -> spoil.Make:
    """A copied set whose images are of classes 0 and 1, but for the first one; large: of 64 px, which a preset has."""

    def change(root: Path) -> None:
        content = json.loads((root / "dataset.json").read_text())
        names = [name for name, _ in content["labels"]]
        content |= {"classes": [[name, i % 2 if i else first] for i, name in enumerate(names)], **more}
        (root / "dataset.json").write_text(json.dumps(content))
        if large:
            enlarged(root)

    return spoil.copied_set(change)


def _train(name: str, make: spoil.Make, message: str, *options: str) -> Case:
    argv = ("--data={TMP}/set/64", "--outdir={TMP}/runs", "--device=cpu", "--preset=epigraf-tiny", *options)
    return Case(name, "train", argv, message, make)


CASES = [
    _train("classes: an image has none", _classed(None), "00000.png: every image needs a class, and this one has none"),
    _train("classes: a negative one", _classed(-1), "00000.png: every image needs a class, and this one -1 is none"),
    _train("classes: numbers and vectors", _classed([0, 1]), "are numbers and vectors of 2; one form for all is legal"),
    _train("classes: fewer than there are", _classed(0, num_classes=1), "num_classes=1: 2, as classes go, to 10000"),
    _train(
        "classes: networks for others than the data's",
        _classed(0),
        "generator.num_classes=5: the images in TMP/set/64 have 2 classes",
        "--set=generator.num_classes=5",
        "--set=discriminator.num_classes=5",
    ),
    _train(
        "classes: networks for some, and data without",
        spoil.copied_set(enlarged),
        "generator.num_classes=3: the images in TMP/set/64 have no classes",
        "--set=generator.num_classes=3",
        "--set=discriminator.num_classes=3",
    ),
    _train(
        "classes: networks for some, and none to be used",
        _classed(0),
        "generator.num_classes=2: --use-labels=False leaves no classes",
        "--use-labels=False",
        "--set=generator.num_classes=2",
        "--set=discriminator.num_classes=2",
    ),
    Case(
        "validate: an image without its class", "dataset_tool", ("validate", "{TMP}/set/32"),
        "1 problem in TMP/set/32, the first: .*00000.png: every image needs a class", _classed(None, large=False),
    ),
    Case(
        "classes: a picture of a network that knows none", "gen_samples", (*_GOOD, "--class=1"),
        "--class=1: this network knows no classes; leave it out",
    ),
    Case(
        "classes: a film of a network that knows none", "gen_videos", (*_GOOD, "--class=1"),
        "--class=1: this network knows no classes; leave it out",
    ),
    Case(
        "classes: a mesh of a network that knows none", "extract_mesh", (*_GOOD, "--class=1"),
        "--class=1: this network knows no classes; leave it out",
    ),
    Case(
        "classes: of heads of one seed", "gen_samples", (*_GOOD, "--class=1", "--num-ids=2"),
        "--class=1 goes with --seeds",
    ),
]  # fmt: skip
