"""Runs our command of every row of docs/coming-from.md, on small data: its files, counts and lengths are replaced."""

import dataclasses
import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dnnlib import ROOT
from tests.families import small_cgof as cgof
from tests.training.families.epigraf import small as epigraf
from tests.training.families.gghead import file_writer as gghead
from tests.training.families.gsgan import small as gsgan
from training.checkpoint import load_checkpoint, save_checkpoint
from training.control.regressor import default_path
from training.data.synthetic.synthesize import synthesize_heads
from training.families import FAMILIES, family
from training.morphable.head import procedural_head
from training.presets import resolve

TEXT = (ROOT / "docs" / "coming-from.md").read_text()
ROWS = [  # system, their command, ours
    (section.split("\n", 1)[0], *row)
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    for row in re.findall(r"^\| `([^`]*)` \| `([^`]*)` \|", section, re.MULTILINE)
]
PIGAN = FAMILIES["pigan"].presets["pigan-tiny"]

SMALL: dict[str, Any] = {  # networks of 32 px, in the sections of the systems that have no other
    "GSGAN": ("gsgan-tiny", gsgan.generator_config, gsgan.discriminator_config),
    "GGHead": ("gghead-tiny", gghead.small_generator, gghead.small_discriminator),
    "CGOF": ("cgof-tiny", lambda: cgof.GENERATOR, lambda: cgof.SMALL.discriminator),
    "pi-GAN": ("pigan-tiny", lambda: dataclasses.replace(PIGAN.generator, resolution=32), lambda: PIGAN.discriminator),
    "EpiGRAF": ("epigraf-tiny", epigraf.for_heads, lambda: epigraf.discriminator_config(resolution=32)),
}
SHORT = {  # put behind the command's own options, of which the last one given holds
    "train": ("--dry-run",),  # whole runs: tests/test_train_options.py
    "gen_videos": ("--w-frames=2", "--resolution=32"),
    "extract_mesh": ("--resolution=16",),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, checkpoint_path: Path) -> Path:
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("coming")
    made = synthesize_heads(folder / "FFHQC", 16, 32, seed=0, workers=1).images
    synthesize_heads(folder / "larger", 16, 64, seed=0, workers=1).images.rename(folder / "FFHQC" / "64")
    shutil.copytree(made, made.with_name("512"))
    (folder / "FFHQC" / "smile_pose_rebalancing.json").write_text("[0, 1, 1, 2]")
    state = load_checkpoint(checkpoint_path)
    state = {name: value for name, value in state.items() if name != "checksum"}
    save_checkpoint(folder / "PKL", state | {"config": state["config"] | {"data": str(made)}})
    for system, (preset, generator, discriminator) in SMALL.items():
        config = dataclasses.replace(
            resolve(preset, data=str(made)), generator=generator(), discriminator=discriminator()
        )
        of = family(config.family)
        G, D = of.generator(config.generator), of.discriminator(config.discriminator)
        # Fields of random weights let light through, and extract_mesh.py would find no surface.
        if system == "EpiGRAF":
            G.network.tri_plane_mlp.model[1].bias.data[3] += 100
        if system == "pi-GAN":
            G.siren.final_layer.bias.data += 100
        networks = {"G": G.state_dict(), "D": D.state_dict(), "G_ema": G.state_dict()}
        grid = {"z": torch.randn(4, G.z_dim), "labels": state["grid"]["labels"][:4]}
        save_checkpoint(folder / f"{system}-PKL", state | networks | {"config": config.to_dict(), "grid": grid})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLATGAN_CACHE_DIR", str(folder / "cache"))
        kept = default_path(procedural_head().key)
        kept.parent.mkdir(parents=True)
        cgof.small_regressor(folder, procedural_head().key).rename(kept)
    return folder


def replaced(system: str, arguments: str, place: Path) -> list[str]:
    """Names the files of `place`, and asks for few images."""
    arguments = re.sub(r"--resume=PKL --resume-kimg=\d+", "--resume=PKL", arguments)  # a file of ours knows its own
    arguments = re.sub(r"(fid3d_|fid|kid)50k_full", r"\g<1>12_full", arguments).replace(
        "--detector=PATH", "--detector=tiny"
    )
    if "--preset=" in arguments:  # the family's smallest member
        arguments = re.sub(r"--preset=(\w+)-\w+", r"--preset=\1-tiny", arguments).replace("SET.zip", "FFHQC/64")
    arguments = re.sub(r"--seeds=0-\d+", "--seeds=0-3", arguments).replace("--grid=4x2", "--grid=2x2")
    arguments = arguments.replace("--init-from=PKL", "--init-from=PKL --init-share=0")  # of a network of another size
    arguments = arguments.replace("=PKL", f"={system}-PKL" if system in SMALL else "=PKL")
    words = shlex.split(re.sub(r"(SET|FFHQ_512)\.zip", "FFHQC/32", arguments).replace("convert IN", "convert FFHQC/32"))
    return [re.sub(r"(=|^)((?:[\w-]+-)?PKL|FFHQC/\d+)$", lambda m: f"{m[1]}{place / m[2]}", word) for word in words]


@pytest.mark.parametrize("row", ROWS, ids=[ours.split()[0] + str(i) for i, (_, _, ours) in enumerate(ROWS)])
def test_our_command_runs(
    row: tuple[str, str, str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, _, arguments = row[2].partition(".py ")
    monkeypatch.chdir(tmp_path)
    if row[0] == "CGOF":
        monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(place / "cache"))  # of its regressor
    words = replaced(row[0], arguments, place)
    own = [word for word in words if not word.startswith("--outdir")]
    outdir = [f"--outdir={tmp_path / 'out'}"] if script != "dataset_tool" else []
    result = CliRunner().invoke(importlib.import_module(script).main, [*own, *SHORT.get(script, ()), *outdir])
    assert result.exit_code == 0, (words, result.output[-2000:])
    assert any(tmp_path.iterdir()) or script in ("train", "calc_metrics")  # a metric's file lies beside the network
