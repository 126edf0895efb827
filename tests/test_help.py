"""The committed --help of every script is what the script prints.

After changing an option, write the files anew and read the difference:

    WRITE_HELP=1 python -m pytest -q tests/test_help.py
"""

import importlib
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dnnlib import ROOT
from training.families import DEFAULT_FAMILY, FAMILIES
from training.runs.launch import stated_default

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
WIDTH = 110


def help_file(script: str) -> Path:
    return ROOT / "docs" / ("train-help.txt" if script == "train" else f"help/{script}.txt")


def help_text(command: click.Command, name: str) -> str:
    """--help of a command and, below it, of each of its subcommands."""
    result = CliRunner().invoke(command, ["--help"], prog_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    assert result.exit_code == 0, result.output
    subcommands = command.commands.items() if isinstance(command, click.Group) else ()
    return "\n\n".join(
        [result.output.rstrip() + "\n", *(help_text(sub, f"{name} {word}") for word, sub in subcommands)]
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_committed_help_is_true(script):
    text = help_text(importlib.import_module(script).main, f"{script}.py")
    if "WRITE_HELP" in os.environ:
        help_file(script).parent.mkdir(exist_ok=True)
        help_file(script).write_text(text)
    assert help_file(script).read_text() == text


def test_train_options_stand_in_groups_with_their_defaults():
    command = importlib.import_module("train").main.of(FAMILIES[DEFAULT_FAMILY])
    shown = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    assert all(p.heading != "Options" for p in shown)
    text = "".join(help_file("train").read_text().split())  # lines are broken at hyphens too
    for option in shown:
        assert f"{option.heading}:".replace(" ", "") in text
        if isinstance(option.show_default, str):
            assert f"default: {option.show_default}".replace(" ", "") in text, option.name


def test_stated_defaults_are_those_of_the_presets():
    assert stated_default("objective.gamma", FAMILIES["cgs"]) == "1; micro: 0.5"
    assert stated_default("generator.map_depth", FAMILIES["cgs"]) == "2; cgs-control-tiny: 0"
    bases = "32768; micro: 1024; small: 4096; tiny, cgs-control-tiny: 2048"
    assert stated_default("discriminator.channel_base", FAMILIES["cgs"]) == bases
