"""Shells complete options, presets, words of closed sets, and names of files: click's completion, and our options."""

import importlib
import re
import tomllib

import pytest
from click.shell_completion import BashComplete

from dnnlib import ROOT
from training import presets

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def offered(script: str, words: list[str], typed: str) -> tuple[set[str], set[str]]:
    """Returns the words that are offered for what is typed, and the kinds of files."""
    command = importlib.import_module(SCRIPTS[script].partition(":")[0]).main
    found = BashComplete(command, {}, script, "_X").get_completions(words, typed)
    return {item.value for item in found if item.type == "plain"}, {item.type for item in found} - {"plain"}


@pytest.mark.parametrize(
    ("words", "typed", "found", "files"),
    [
        ([], "--pres", {"--preset"}, set()),
        (["--preset"], "", set(presets.presets()), set()),
        ([], "--preset=gsg", {name for name in presets.presets() if name.startswith("gsg")}, set()),
        (["--preset=gsgan-tiny"], "--style", {"--style-mixing-prob"}, set()),  # an option of that family alone
        ([], "--style", set(), set()),
        (["--aug"], "", {"noaug", "ada", "fixed"}, set()),
        (["--augpipe"], "b", {"blit", "bg", "bgc"}, set()),
        (["--wandb"], "o", {"off", "offline", "online"}, set()),
        (["--data"], "data", set(), {"file"}),
        (["--resume"], "la", {"latest"}, {"file"}),
        (["--background"], "", {"auto", "random", "white", "black"}, set()),
        (["--kimg"], "", set(), set()),
    ],
)
def test_train(words, typed, found, files):
    assert offered("splatgan-train", words, typed) == (found, files)


def test_data():
    assert offered("splatgan-data", [], "re") == ({"rebalance"}, set())
    assert offered("splatgan-data", ["import", "--from"], "") == (
        {"colmap", "transforms", "eg3d", "epigraf", "photos"},
        set(),
    )
    assert offered("splatgan-data", ["validate", "--like"], "x")[1] == {"file"}


@pytest.mark.parametrize("script", ["splatgan-metrics", "splatgan-videos", "splatgan-samples"])
def test_networks_are_files(script):
    assert offered(script, ["--network"], "run")[1] == {"file"}


def test_the_page_names_variables_that_click_reads():
    """Click asks for the command's name in capitals, with underscores."""
    named = re.findall(r"_(\w+)_COMPLETE=bash_source ([\w-]+)", (ROOT / "docs" / "start.md").read_text())
    assert len(named) == 2 and all(command in SCRIPTS for _, command in named)
    assert all(command.replace("-", "_").upper() == variable for variable, command in named)
