"""What README.md and the pages claim and code can check: commands, options, links, presets; and that the pins agree."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from dnnlib import ROOT
from training import presets
from training.families import FAMILIES, family
from training.published import gallery
from training.runs.train_command import TrainCommand

README = (ROOT / "README.md").read_text()
# new-family.md trains a family that is not registered here.
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem != "new-family")]
COMMAND = re.compile(r"^ {4,}(?:python|torchrun \S+ \S+) (\w+)\.py (.*?)(?: +#.*)?$", re.MULTILINE)


ALONE = {"--help", "--list", "--replay", "--version"}  # options beside which nothing is required


def commands(page: Path) -> list[tuple[str, str]]:
    return COMMAND.findall(page.read_text().replace("\\\n", " "))


def options(command: click.Command) -> set[str]:
    """Names of all options, those that families add to train.py among them."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    added = [o for family in FAMILIES.values() for o in family.options] if isinstance(command, TrainCommand) else []
    return own | {flag for option in added for flag in option.flags}


def test_readme_shows_every_script():
    assert {script for script, _ in commands(ROOT / "README.md")} == {path.stem for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_use_options_that_exist(page):
    for script, arguments in commands(page):
        check_command(script, arguments)


def check_command(script: str, arguments: str) -> None:
    command = importlib.import_module(script).main
    words = shlex.split(arguments)
    if isinstance(command, click.Group):
        assert words[0] in command.commands
        command = command.commands[words[0]]
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= options(command), (script, arguments)
    required = {p.opts[0] for p in command.params if isinstance(p, click.Option) and p.required}
    assert required <= given or given & ALONE or "..." in words, (script, arguments)


def test_the_gallery_is_the_list_of_the_code():
    assert gallery.table() in (ROOT / "docs" / "gallery.md").read_text()
    rows = [(n.family, n.preset) for n in gallery.GALLERY]
    assert all(presets.presets()[preset][0].name == family for family, preset in rows)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_preset_table_is_true():
    table = dict(re.findall(r"^\| `([a-z][\w-]*)` \| \d+ px \| (.*?) \|.*\|$", README, re.MULTILINE))
    published = re.search(
        r"^The published networks and settings, for GPUs: (.*?)\n\n", README, re.MULTILINE | re.DOTALL
    )
    assert {*table, *re.findall(r"`([\w-]+)`", published[1])} == set(presets.presets())
    for name in presets.presets():
        config = presets.resolve(name, data="unused")
        assert (config.resolution < 256) >= (name in table), name
        if name in table:
            assert family(config.family).generator(config.generator).scene_size().startswith(table[name]), name


def test_make_targets_and_variables_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make (\w+)|`make (\w+)", README, re.MULTILINE)
    assert len(targets) >= 4
    for target in map("".join, targets):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for variable in ("TORCH_INDEX", "DEMO_MINUTES"):
        assert variable in README
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^\s*(?:- )?([\w-]+)==([\w.]+)$", (ROOT / name).read_text(), re.MULTILINE))


def test_conda_and_pip_pin_the_same_versions():
    wanted, conda = pins("requirements.txt"), pins("environment.yml")
    assert len(wanted) == 12
    assert {name: conda.get(name) for name in wanted} == wanted
