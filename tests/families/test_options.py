"""The command line of a family that only these tests know: its options, --set, --help."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import pytest

import train
from tests.families import ball
from tests.families.runs import run, train_run
from training.families import FAMILIES, base, family, register
from training.runs import train_command


def resolved(heads: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(train.main, f"--data={heads}", "--dry-run", *arguments, code=code))
    return found


def refusal(heads: Path, *arguments: str) -> str:
    return " ".join(run(train.main, f"--data={heads}", "--dry-run", *arguments, code=2).split())


def test_help_shows_the_options_of_the_presets_family_alone() -> None:
    text = run(train.main, "--preset=ball", "--help")
    heading, own = text.index("Family balls, one soft ball a scene:"), text.index("--radius")
    assert heading < own < text.index("Optimisation:") and "[default: 0.2; x>=0]" in " ".join(text.split())
    assert "--r1-gamma FLOAT" not in text and "Family cgs" not in text and "--specks" not in text
    assert "--specks" in run(train.main, "--preset", "speck", "--help")
    default = run(train.main, "--help")
    assert "--gamma, --r1-gamma FLOAT" in default and "--radius" not in default


def test_an_option_of_another_family_is_refused_with_its_name(heads: Path) -> None:
    text = refusal(heads, "--preset=ball", "--gamma=1")
    assert "--gamma is an option of the family cgs, and this run is of balls" in text
    text = refusal(heads, "--preset=micro", "--radius=1")
    assert "--radius is an option of the family balls, and this run is of cgs; --preset chooses (ball)" in text


def test_options_and_settings_are_typed(heads: Path) -> None:
    arguments = ("--preset=ball", "--radius=0.5", "--set=objective.gamma=0.75", "--set=discriminator.mapping_depth=3")
    config = resolved(heads, *arguments, "--set", "batch=32", "--set=metrics=none,swd16", "--set=mirror=no")
    assert (config["family"], config["preset"]) == ("balls", "ball")
    assert config["generator"] == {"resolution": 32, "z_dim": 8, "radius": 0.5}
    assert config["objective"]["gamma"] == 0.75 and config["discriminator"]["mapping_depth"] == 3
    assert config["batch"] == 32 and config["mirror"] is False
    assert "'x' is not a number" in refusal(heads, "--preset=ball", "--set=objective.gamma=x")
    assert "'1.5' is not a whole number" in refusal(heads, "--preset=ball", "--set=discriminator.mapping_depth=1.5")
    assert "'--radius': -1.0 is not in the range" in refusal(heads, "--preset=ball", "--radius=-1")


def test_unknown_settings_are_refused_with_the_legal_ones(heads: Path) -> None:
    assert "there is no value 'objective.knn_weight'; legal in objective are gamma" in refusal(
        heads, "--preset=ball", "--set=objective.knn_weight=1"
    )
    assert "legal are" in refusal(heads, "--preset=ball", "--set=nothing=1")
    assert "legal in objective are gamma" in refusal(heads, "--preset=micro", "--set=objective.decay=1")


def test_a_run_of_several_stages_keeps_them_in_its_configuration(heads: Path) -> None:
    stages = resolved(heads, "--preset=grown")["stages"]
    assert [stage["resolution"] for stage in stages] == [16, 32] and [stage["batch"] for stage in stages] == [8, 4]


def test_names_are_taken_once() -> None:
    assert family("balls") is ball.FAMILY
    with pytest.raises(ValueError, match="'balls' exists already"):
        register(ball.FAMILY)
    with pytest.raises(ValueError, match="preset called 'ball' exists already, in the family 'balls'"):
        register(dataclasses.replace(ball.FAMILY, name="others"))
    with pytest.raises(ValueError, match="unknown family 'others'; legal are cgs"):
        family("others")
    assert "others" not in FAMILIES


def test_an_option_of_a_tuple_takes_a_list() -> None:
    cgs = FAMILIES["cgs"]
    option = train_command._family_option(cgs, base.Option(("--ratios",), "generator.ratios", "of the levels"))
    assert option.type.convert("1,4,2", option, None) == (1, 4, 2)
    with pytest.raises(click.BadParameter, match="'x' is not a whole number"):
        option.type.convert("1,x", option, None)


def test_the_latest_run_brings_its_family(heads: Path, tmp_path: Path) -> None:
    """Without --preset: its own options are known, and what is not given stays as the run has it."""
    common = (f"--outdir={tmp_path}", "--desc=mine", "--resume=latest", "--kimg=0.008")
    train_run(heads, tmp_path, "--desc=mine", "--preset=ball", "--radius=0.5", "--kimg=0.008", "--img-snap=9")
    found = resolved(heads, *common, "--set=objective.gamma=2")
    assert (found["family"], found["preset"], found["generator"]["radius"]) == ("balls", "ball", 0.5)
    assert found["objective"]["gamma"] == 2 and found["batch"] == 8
    assert "--knn-dists is an option of the family cgs" in refusal(heads, *common, "--knn-dists=1")
