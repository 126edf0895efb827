"""Opens networks that were pickled whole, one a file, by torch.save: pi-GAN's generator.pth and its companions.

Such a file is a zip of a pickle and of the numbers of its tensors. The pickle is walked as data, as in `pickle_file`:
classes on a list become stand-ins, and every other name is refused. The average of a generator lies in a file of its
own, as a list of tensors without names, in the order of the generator's parameters.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.published import restricted_pickle
from training.published.pickle_file import (
    STORAGE_TYPES,
    TENSOR_FUNCTIONS,
    Storage,
    StoredFile,
    StoredNetwork,
    StoredTensor,
)
from training.published.restricted_pickle import Global, Instance, RefusedPickle

AVERAGE = "torch_ema.ema.ExponentialMovingAverage"
MAX_ENTRIES = 10_000  # of a zip
_PICKLE = "/data.pkl"
_ZIP = b"PK\x03\x04"
_CLASS = b"\x80\x02c"  # how the pickle of an object of a class begins, in torch's protocol;
_STATE = _CLASS + b"collections\n"  # that of a state dict does too


def is_module_file(path: str | os.PathLike) -> bool:
    """Says whether torch.save wrote an object of a class of its own to the file, and no dictionary as ours are."""
    with contextlib.suppress(Exception):  # a damaged file can make the reader of zips stumble over anything
        with open(path, "rb") as whole:
            if whole.read(len(_ZIP)) != _ZIP:  # a zip may hide behind other bytes
                return False
        with zipfile.ZipFile(path) as archive, archive.open(_pickle_name(archive)) as file:
            start = file.read(len(_STATE))
        return start.startswith(_CLASS) and start != _STATE
    return False


def open_modules(path: Path, layouts: Sequence[Mapping[str, str]], classes: Collection[str]) -> StoredFile:
    """Opens the file of a generator, and those beside it that belong to it.

    layouts: record -> word in its file's name, of every family; G and G_ema must be there. Raises RefusedPickle and
    ValueError, without the path, and OSError.
    """
    words = next((words for words in layouts if words["G"] in path.name), None)
    if words is None:
        legal = " or ".join(f"*{words['G']}*" for words in layouts)
        raise ValueError(f"holds an object; the file of a generator is called {legal}, and is the one to name")
    places = {record: path.with_name(path.name.replace(words["G"], word)) for record, word in words.items()}
    if not places["G_ema"].is_file():
        raise ValueError(f"{places['G_ema'].name} must lie beside it: it has the averaged weights, which are shown")
    found = {record: place for record, place in places.items() if place.is_file()}
    records = {record: _open(place, {AVERAGE, *classes}) for record, place in found.items()}
    file = StoredFile(path, records, sum(place.stat().st_size for place in found.values()))
    file.add("G_ema", _averaged(file, places["G_ema"].name))
    return file


def _averaged(file: StoredFile, name: str) -> StoredNetwork:
    """Returns G with the tensors of the average in place of its own."""
    generator, average = file.network("G"), file.records["G_ema"]
    if generator is None or not isinstance(average, Instance) or average.class_name != AVERAGE:
        raise RefusedPickle(f"{name} holds no moving average of a generator")
    values = average.state.get("shadow_params")
    if not isinstance(values, list) or not all(isinstance(value, StoredTensor) for value in values):
        raise RefusedPickle(f"{name} has no list of tensors")
    own = [generator.tensors[parameter] for parameter in generator.parameters]
    if [value.shape for value in values] != [value.shape for value in own]:
        raise RefusedPickle(f"{name} is the average of another generator: its tensors have other shapes")
    return replace(generator, tensors={**generator.tensors, **dict(zip(generator.parameters, values, strict=True))})


def _open(path: Path, classes: Collection[str]) -> Any:
    """Returns the object in a file, inert."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive, classes).load()
    except RefusedPickle as error:
        raise RefusedPickle(f"{path.name}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # likewise
        raise RefusedPickle(f"{path.name} is damaged or cut short ({type(error).__name__})") from None


def _pickle_name(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith(_PICKLE) and name.count("/") == 1]
    if len(names) != 1:
        raise zipfile.BadZipFile(f"it holds {len(names)} pickles")
    return names[0]


class _Archive:
    """Reads one zip of torch.save."""

    def __init__(self, archive: zipfile.ZipFile, classes: Collection[str]):
        self.archive, self.classes = archive, classes
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES or len({entry.filename for entry in entries}) != len(entries):
            raise RefusedPickle(f"more than {MAX_ENTRIES:,} entries, or two of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise RefusedPickle("a compressed entry; torch.save stores them as they are")
        self.pickle = _pickle_name(archive)
        self.folder = self.pickle.removesuffix(_PICKLE)
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        order = f"{self.folder}/byteorder"
        if order in self.archive.namelist() and self.archive.read(order) != b"little":
            raise RefusedPickle("written on a big-endian machine")
        data = memoryview(bytearray(self.archive.read(self.pickle)))
        found, used = restricted_pickle.load(data, TENSOR_FUNCTIONS, self.is_class, self.storage)
        if used != len(data):
            raise RefusedPickle(f"{len(data) - used:,} bytes follow the pickle's end")
        return found

    def is_class(self, name: str) -> bool:
        return name in self.classes or name in STORAGE_TYPES or name.startswith("torch.nn.modules.")

    def storage(self, identity: Any) -> Storage:
        """Returns the numbers that ('storage', type, key, device, length) stands for."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise RefusedPickle("a storage with an unknown record")
        _, kind, key, _device, count = identity
        known = isinstance(kind, Global) and kind.name in STORAGE_TYPES
        if not known or not isinstance(key, str) or not key.isdecimal() or type(count) is not int:
            raise RefusedPickle("a storage with an unknown record")
        if key not in self.storages:
            name = f"{self.folder}/data/{key}"
            if name not in self.archive.namelist():
                raise RefusedPickle(f"the numbers of storage {key} are missing")
            self.storages[key] = Storage(memoryview(bytearray(self.archive.read(name))), STORAGE_TYPES[kind.name])
        storage = self.storages[key]
        if storage.dtype != STORAGE_TYPES[kind.name] or count * storage.dtype.itemsize != len(storage.data):
            raise RefusedPickle(f"a storage that declares {count:,} numbers and has {len(storage.data):,} bytes")
        return storage
