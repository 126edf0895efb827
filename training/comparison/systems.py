"""Finds the networks of a comparison, says what each is, and refuses those that cannot stand in one table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dnnlib
from training import checkpoint
from training.comparison.store import Store
from training.config import TrainingConfig
from training.data.poses import PoseLaw
from training.dataset import ImageDataset
from training.published.records import is_published
from training.runs.resume import data_mark, is_run_dir

AUTO, OWN = "auto", "own"  # choices of the background besides colours


@dataclass(frozen=True)
class Facts:
    """Holds what a checkpoint says of itself."""

    family: str
    preset: str
    resolution: int  # pixels
    nimg: int | None  # images seen; None where a published file does not say
    parameters: int  # of the generator
    scene: str  # size of a scene, for people
    background: str  # of the training: "random" or a colour
    shown_background: str  # colour of pictures and metrics
    data: str  # folder of the training
    index_list: str | None  # of the training
    data_mark: dict[str, Any] | None  # items and labels of the training; None where a published file does not say
    pose_law: dict[str, Any] | None = None  # fields of the law of its cameras; None: they were those of the labels


@dataclass(frozen=True)
class System:
    """Names a network of a comparison."""

    name: str  # unique in the comparison
    path: Path  # of the checkpoint
    digest: str  # SHA-256 of the file
    size: int  # bytes of the file
    facts: Facts


def split_list(flag: str, text: str | None) -> list[str]:
    """Splits comma-separated words. Raises ValueError, naming the flag, if there is none or one twice."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not words:
        raise ValueError(f"{flag}={text}: names nothing")
    if twice := [word for word, count in Counter(words).items() if count > 1]:
        raise ValueError(f"{flag}={text}: {twice[0]} is there twice; leave one out")
    return words


def newest_network(run_dir: Path) -> Path:
    """Finds the snapshot of a run that has seen most images, or its latest state where there is none.

    Raises ValueError for what is no run folder, or one without a checkpoint.
    """
    if not is_run_dir(run_dir):
        raise ValueError(f"--runs: {run_dir}: is no run folder (it has no training_options.json)")
    snapshots = sorted(run_dir.glob(checkpoint.SNAPSHOT_PATTERN))
    if snapshots:
        return max(snapshots, key=lambda path: checkpoint.read_progress(path)["nimg"])
    state = run_dir / checkpoint.STATE_NAME
    if not state.exists():
        raise ValueError(f"--runs: {run_dir}: has no checkpoint yet")
    return state


def open_systems(paths: Sequence[Path], names: Sequence[str], store: Store) -> list[System]:
    """Reads what each file is; `names`, if any, are the systems' names. Raises ValueError for one that cannot be used.

    What is known of a file's content is taken from the store, so that a second call opens none.
    """
    given = list(names) or unique_names(paths)
    if len(given) != len(paths):
        raise ValueError(f"--names: {len(given)} names for {len(paths)} networks; give one each, in their order")
    systems = []
    for name, path in zip(given, paths, strict=True):
        if not path.is_file():  # with the words of the reader
            checkpoint.load_checkpoint(path)
        key = {"what": "facts", "network": (digest := dnnlib.file_sha256(path))}
        kept = store.load(key)
        facts = Facts(**kept) if kept else read_facts(path)
        store.save(key, dataclasses.asdict(facts))
        systems.append(System(name, path, digest, path.stat().st_size, facts))
    _refuse_duplicates(systems)
    return systems


def read_facts(path: Path) -> Facts:
    """Opens a checkpoint, ours or published. Raises CheckpointError."""
    G = checkpoint.load_generator(path)
    assert G.info is not None  # every generator from a file has it
    config = G.info.config
    progress = {} if is_published(path) else checkpoint.read_progress(path)
    law = TrainingConfig.from_dict(dict(config)).objective.pose_law
    known = "imported" not in progress  # of a converted published file the images are a guess
    return Facts(
        family=config["family"],
        preset=config["preset"],
        resolution=G.resolution,
        nimg=progress.get("nimg") if known else None,
        parameters=sum(p.numel() for p in G.parameters()),
        scene=G.scene_size(),
        background=config["background"],
        shown_background=G.info.background,
        data=config["data"],
        index_list=config["index_list"],
        data_mark=progress.get("data"),
        pose_law=None if law is None else dataclasses.asdict(law),
    )


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Names networks by their run folder or their file, and by both where that is not unique."""
    short = [path.parent.name if is_run_dir(path.parent) else path.stem for path in paths]
    longer = [f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    names = [long if short.count(name) > 1 else name for name, long in zip(short, longer, strict=True)]
    return [str(path) if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def _refuse_duplicates(systems: Sequence[System]) -> None:
    seen: dict[str, System] = {}
    for system in systems:
        if other := seen.get(system.digest):
            raise ValueError(f"{system.path}: is the same network as {other.path}; leave one out")
        seen[system.digest] = system
    names = Counter(system.name for system in systems)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"--names: {twice[0]} is there twice")


def require_comparable(systems: Sequence[System], dataset: ImageDataset, data: str) -> None:
    """Raises ValueError for a network of another resolution or of other data than `dataset`, opened from `data`."""
    for system in systems:
        if system.facts.resolution != dataset.resolution:
            raise ValueError(
                f"{system.path}: makes images of {system.facts.resolution} px, the images in --data={data} have "
                f"{dataset.resolution} px; one table holds one resolution"
            )
    for system in systems:
        mark = system.facts.data_mark
        if mark is None:
            continue
        listed = system.facts.index_list
        law = PoseLaw(**system.facts.pose_law) if system.facts.pose_law else None
        same = listed == dataset.index_list and law is None
        seen = dataset if same else ImageDataset(data, listed, law)
        if (own := data_mark(seen)) != mark:
            counts = f"{mark['items']:,} items" if mark["items"] != own["items"] else "other labels"
            raise ValueError(
                f"{system.path}: was trained on other data ({system.facts.data}, {counts}) than --data={data} "
                f"({own['items']:,} items); one table holds one data set"
            )


def backgrounds(systems: Sequence[System], asked: str) -> list[str]:
    """Returns the colour behind reals and fakes for each system.

    auto: one for all, that of the networks which were trained over one colour, else white. own: each that of its
    training. Else the colour asked for. Raises ValueError where one colour does not suit all.
    """
    if asked == OWN:
        return [system.facts.shown_background for system in systems]
    fixed = [system for system in systems if system.facts.background != "random"]
    if asked == AUTO:
        asked = fixed[0].facts.background if fixed else "white"
    try:
        colour = dnnlib.parse_color(asked)
    except ValueError as error:
        raise ValueError(f"--background={asked}: {error} (or auto, own)") from None
    for system in fixed:
        if dnnlib.parse_color(system.facts.background) != colour:
            raise ValueError(
                f"{system.path}: was trained over {system.facts.background}, so no picture of it is fair over {asked}; "
                "--background=own measures each network over the colour of its training"
            )
    return [asked] * len(systems)
