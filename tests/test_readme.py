"""What README.md claims and code can check: commands, options, links, the preset table; and that the pins agree."""

import importlib
import re
import shlex

import click
import pytest

from dnnlib import ROOT
from training import presets

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (?:python|torchrun \S+ \S+) (\w+)\.py (.*?)(?: +#.*)?$", README, re.MULTILINE)


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_readme_shows_every_script():
    assert {script for script, _ in COMMANDS} == {path.stem for path in ROOT.glob("*.py")}


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_commands_use_options_that_exist(script, arguments):
    command = importlib.import_module(script).main
    words = shlex.split(arguments)
    if isinstance(command, click.Group):
        assert words[0] in command.commands
        command = command.commands[words[0]]
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= options(command)
    required = {p.opts[0] for p in command.params if isinstance(p, click.Option) and p.required}
    assert required <= given


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_preset_table_is_true():
    table = dict(re.findall(r"^\| `(micro|tiny|small)` \| \d+ px \| ([\d,]+) \|", README, re.MULTILINE))
    assert set(table) == {name for name, (_, preset) in presets.presets().items() if preset.generator.resolution < 256}
    for name, splats in table.items():
        assert sum(presets.resolve(name, data="unused").generator.level_sizes) == int(splats.replace(",", ""))


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
