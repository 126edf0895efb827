"""Computes what a table holds of each system, or takes it from the store: values, pictures, seconds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dnnlib
from torch_utils import distributed
from training import checkpoint
from training.comparison import pictures
from training.comparison.store import Record, Store
from training.comparison.systems import System
from training.dataset import ImageDataset
from training.families.base import Generator

UNAVAILABLE = "unavailable"  # key of a record that says why a metric has no value

# Measures a generator: metric, background and a title for progress to a JSON line, or to {UNAVAILABLE: reason}.
Measure = Callable[[Generator, str, str, str], Record]


@dataclass(frozen=True)
class Protocol:
    """Holds what is the same for every system of a comparison."""

    dataset: ImageDataset
    data_key: str  # hash of the data set's content
    metrics: tuple[str, ...]
    detector_keys: Mapping[str, str | None]  # metric -> what its features depend on
    seed: int  # of the metrics' latents and cameras
    seeds: tuple[int, ...]  # of the pictures
    device: torch.device


@dataclass(frozen=True)
class Measured:
    """Holds all that is known of a system."""

    system: System
    background: str  # behind reals, fakes and pictures
    results: dict[str, Record]  # metric -> JSON line
    speed: Mapping[str, float]  # sec_per_image, sec_per_view; {} on ranks other than 0
    picture: bytes  # PNG; empty on ranks other than 0


class Computer:
    """Computes what is not in the store. With several ranks, all of them call it; the first keeps and shows."""

    def __init__(self, protocol: Protocol, store: Store, measure: Measure, say: Callable[[str], None]) -> None:
        self.protocol, self.store, self.measure, self.say = protocol, store, measure, say
        self.machine = machine_name(protocol.device)

    def system(self, system: System, background: str, place: str) -> Measured:
        """Returns all that the table needs of a system. place: "2/3", for progress."""
        keys = {name: self._metric_key(system, name, background) for name in self.protocol.metrics}
        results = distributed.on_main(lambda: {name: found for name in keys if (found := self.store.load(keys[name]))})
        picture_key, speed_key = self._picture_key(system, background), self._speed_key(system)
        picture, speed = self._kept(picture_key), self._kept(speed_key)
        missing = [name for name in keys if name not in results]
        for name in results:
            self.say(f"[{place}] {system.name}: {_described(name, results[name])}, kept from an earlier call")
        unseen = distributed.rank() == 0 and (picture is None or speed is None)
        if missing or unseen:
            G = checkpoint.load_generator(system.path, self.protocol.device)
            for name in missing:
                results[name] = self.measure(G, name, background, f"[{place}] {system.name}: {name}")
                if UNAVAILABLE not in results[name]:
                    self._keep(keys[name], results[name])
                self.say(f"[{place}] {system.name}: {_described(name, results[name])}")
            if unseen:
                picture = picture or self._draw(G, picture_key, background)
                speed = speed or self._time(G, speed_key)
            del G
            if self.protocol.device.type == "cuda":
                torch.cuda.empty_cache()
        ordered = {name: results[name] for name in self.protocol.metrics}
        png = pictures.decode(picture["png"]) if picture else b""
        return Measured(system, background, ordered, speed or {}, png)

    def reals(self, background: str) -> bytes:
        """Returns the picture of the data, a PNG."""
        rows = len(self.protocol.seeds)
        key = {"what": "reals", "data": self.protocol.data_key, "rows": rows, "background": _rgb(background)}
        kept = self.store.load(key)
        if kept is None:
            kept = {"png": pictures.encode(pictures.draw_reals(self.protocol.dataset, rows, background))}
            self.store.save(key, kept)
        return pictures.decode(kept["png"])

    def _kept(self, key: Record) -> Record | None:
        return self.store.load(key) if distributed.rank() == 0 else None

    def _keep(self, key: Record, record: Record) -> None:
        if distributed.rank() == 0:
            self.store.save(key, record)

    def _draw(self, G: Generator, key: Record, background: str) -> Record:
        png = pictures.draw_system(G, self.protocol.dataset, self.protocol.seeds, background)
        self._keep(key, record := {"png": pictures.encode(png)})
        return record

    def _time(self, G: Generator, key: Record) -> Record:
        self._keep(key, record := pictures.measure_speed(G, self.protocol.dataset))
        return record

    def _metric_key(self, system: System, name: str, background: str) -> Record:
        return {
            "what": "metric",
            "network": system.digest,
            "data": self.protocol.data_key,
            "metric": name,
            "seed": self.protocol.seed,
            "background": _rgb(background),
            "detector": self.protocol.detector_keys[name],
        }

    def _picture_key(self, system: System, background: str) -> Record:
        return {
            "what": "picture",
            "network": system.digest,
            "data": self.protocol.data_key,
            "seeds": list(self.protocol.seeds),
            "background": _rgb(background),
        }

    def _speed_key(self, system: System) -> Record:
        return {"what": "speed", "network": system.digest, "machine": self.machine}


def _described(name: str, record: Record) -> str:
    if UNAVAILABLE in record:
        return f"{name} left out: {record[UNAVAILABLE]}"
    return f"{name} {record['results'][name]:.4g} in {record['total_time_str']}"


def require_whole(measured: Sequence[Measured]) -> None:
    """Raises ValueError, with the first reason, if a value is missing."""
    missing = [
        f"{m.system.name}: {name}: {record[UNAVAILABLE]}"
        for m in measured
        for name, record in m.results.items()
        if UNAVAILABLE in record
    ]
    if missing:
        count = sum(len(m.results) for m in measured)
        raise ValueError(f"--metrics: {len(missing)} of {count} values are missing in the table: {missing[0]}")


def _rgb(background: str) -> list[float]:
    return list(dnnlib.parse_color(background))


def machine_name(device: torch.device) -> str:
    """Names what a time was taken on: the GPU, or the processor and the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'' if threads == 1 else 's'}"


def describe(
    protocol: Protocol,
    measured: Sequence[Measured],
    machine: str,
    columns: Sequence[Record],  # of the metrics: name, meaning, larger_is_better
    quoted: Record | None,
    data: str,  # as it was given
    equal_time: Record | None,  # presets and minutes of the training that came first, if any did
) -> Record:
    """Returns the whole comparison as the record that comparison.json holds."""
    dataset = protocol.dataset
    return {
        "format": 1,
        "splatgan": dnnlib.__version__,
        "data": {
            "name": dataset.name,
            "path": data,
            "items": len(dataset),
            "resolution": dataset.resolution,
            "masks": dataset.has_masks,
            "index_list": dataset.index_list,
            "content": protocol.data_key,
        },
        "protocol": {
            "weights": "ema",
            "truncation_psi": 1.0,
            "seed": protocol.seed,
            "background": sorted({m.background for m in measured}),
            "conditioning": "the rendering camera; fid3d, swd3d and pictures: the data's frontal camera",
            "picture_seeds": list(protocol.seeds),
            "picture_yaws_deg": pictures.yaws_deg(dataset),
            "machine": machine,
            "equal_time": equal_time,
        },
        "metrics": list(columns),
        "systems": [_system(m) for m in measured],
        "quoted": quoted,
    }


def _system(measured: Measured) -> Record:
    system, facts = measured.system, measured.system.facts
    values: dict[str, Any] = {
        "name": system.name,
        "network": str(system.path),
        "sha256": system.digest,
        "family": facts.family,
        "preset": facts.preset,
        "kimg": None if facts.nimg is None else facts.nimg / 1000,
        "data_known": facts.data_mark is not None,
        "background": measured.background,
        "parameters": facts.parameters,
        "scene": facts.scene,
        "checkpoint_bytes": system.size,
    }
    return {**values, **measured.speed, "results": measured.results}
