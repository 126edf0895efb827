"""Reads published checkpoints, which are pickles of live modules, without running anything that is in them.

StyleGAN2-ADA (Karras et al. 2020) and its descendants write such files: one pickle of a dictionary that holds networks,
the optimisers' states and the data set's options. A network is the text of the module that defines its class and the
object's `__dict__`, nested; a tensor is a call that names a storage, a storage is a call with the bytes that
`torch.save` wrote for it. `restricted_pickle` walks all of it as data: the few names below, and the classes that the
families name, become stand-ins; every other name is refused. Source texts are only ever searched.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.published import restricted_pickle
from training.published.restricted_pickle import Global, Instance, RefusedPickle

MAX_DEPTH = 32  # modules inside modules
MAX_AXES = 8  # of a tensor
MAX_MODULES = 20_000  # visits; one module may be reached along several paths
COPIES = 4  # times the file: how much its tensors may take together; one tensor may serve G and G_ema

PERSISTENCE_VERSION = 6
_IN_FOLDER = re.compile(r"checkpoint-(\d{1,9})\.pkl")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first object of torch.save's old format, and then its version
_TORCH_PROTOCOL = 1001
_PICKLE_START = b"\x80"  # of every protocol since 2
_TORCH_START = b"\x80\x02\x8a\n" + _TORCH_MAGIC.to_bytes(10, "little")

STORAGE_TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True, eq=False, slots=True)
class _Record:
    """Holds what a storage says about itself before its numbers."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """Holds the bytes of a storage, which stay in the file."""

    data: memoryview
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return len(self.data) // self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """Stands for a tensor that is still in the file: a part of a storage without gaps, its axes in any order."""

    storage: Storage
    start: int  # elements
    shape: tuple[int, ...]
    order: tuple[int, ...]  # axes, the one with the longest stride first

    @property
    def nbytes(self) -> int:
        """Memory that the tensor takes once it is read."""
        return prod(self.shape) * self.storage.dtype.itemsize

    def read(self) -> Tensor:
        """Copies the tensor out of the file, onto the CPU."""
        size = self.storage.dtype.itemsize
        data = self.storage.data[self.start * size : self.start * size + self.nbytes]
        # Copied as bytes first, since nothing in a pickle is aligned.
        flat = torch.frombuffer(data, dtype=torch.uint8).clone().view(self.storage.dtype)
        if self.order == tuple(range(len(self.shape))):
            return flat.reshape(self.shape)
        back = [self.order.index(axis) for axis in range(len(self.shape))]
        return flat.reshape([self.shape[axis] for axis in self.order]).permute(back).contiguous()


# ---------------------------------------------------------------- what the names of a file do


def _load_from_bytes(data: Any) -> Storage:
    """Opens what torch.save wrote: three headers, a record of type and length, a list of keys, the numbers."""
    if not isinstance(data, memoryview):
        raise RefusedPickle("a storage that is not made of bytes")
    parts, at = [], 0
    for _ in range(5):
        part, used = restricted_pickle.load(data[at:], {}, STORAGE_TYPES.__contains__, _storage_record)
        parts.append(part)
        at += used
    magic, version, system, record, keys = parts
    if magic != _TORCH_MAGIC or version != _TORCH_PROTOCOL or not isinstance(system, dict):
        raise RefusedPickle("a storage in an unknown format")
    if system.get("little_endian") is not True:
        raise RefusedPickle("a storage written on a big-endian machine")
    if not isinstance(record, _Record) or keys != [record.key]:
        raise RefusedPickle("a storage without its record")
    declared = int.from_bytes(data[at : at + 8], "little")
    left = max(len(data) - at - 8, 0)
    if declared != record.numel or record.numel * record.dtype.itemsize != left:
        raise RefusedPickle(f"a storage that declares {declared:,} numbers of {record.dtype} and has {left:,} bytes")
    return Storage(data[at + 8 :], record.dtype)


def _storage_record(identity: Any) -> _Record:
    """Reads the tuple ('storage', type, key, device, length, view)."""
    if not isinstance(identity, tuple) or len(identity) != 6 or identity[0] != "storage":
        raise RefusedPickle("a storage with an unknown record")
    _, kind, key, _device, count, view = identity
    if not isinstance(kind, Global) or not isinstance(key, str) or type(count) is not int or view is not None:
        raise RefusedPickle("a storage with an unknown record")
    return _Record(STORAGE_TYPES[kind.name], key, count)


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _requires_grad: Any, _hooks: Any, _metadata: Any = None
) -> StoredTensor:
    """Checks that a tensor lies in its storage, without gaps."""
    if not isinstance(storage, Storage):
        raise RefusedPickle("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if not len(size) == len(stride) <= MAX_AXES or any(type(n) is not int or n < 0 for n in numbers) or 0 in size:
        raise RefusedPickle("a tensor with an impossible size or stride")
    if offset + prod(size) > storage.numel:
        raise RefusedPickle(f"a tensor of size {list(size)} at {offset} in a storage of {storage.numel:,} numbers")
    # A transposed tensor has its axes in another order, and no gaps between them either.
    order = sorted(range(len(size)), key=lambda axis: -stride[axis])  # stable: equal strides keep their order
    expected = 1
    for axis in reversed(order):
        if size[axis] > 1 and stride[axis] != expected:
            raise RefusedPickle(f"a tensor of size {list(size)} that is not contiguous (stride {list(stride)})")
        expected *= size[axis]
    return StoredTensor(storage, offset, tuple(size), tuple(order))


def _rebuild_parameter(data: Any, _requires_grad: Any, _hooks: Any) -> StoredTensor:
    """Returns the tensor of a parameter."""
    if not isinstance(data, StoredTensor):
        raise RefusedPickle("a parameter without a tensor")
    return data


def _reconstruct(meta: Any) -> Instance:
    """Returns an object of a class whose source text travels with it, as an inert record."""
    if not isinstance(meta, dict):
        raise RefusedPickle("a persistent object without its record")
    if meta.get("type") != "class" or meta.get("version") != PERSISTENCE_VERSION:
        raise RefusedPickle(f"a persistent object that is not a class, or not of version {PERSISTENCE_VERSION}")
    name, source, state = meta.get("class_name"), meta.get("module_src"), meta.get("state")
    if not isinstance(name, str) or not isinstance(source, str) or not isinstance(state, dict):
        raise RefusedPickle("a persistent object without class name, source text or state")
    return Instance(name, state, source)


def _empty_dict() -> dict:
    """Returns {}, which what follows fills. With arguments a small file could have a dict copied again and again."""
    return {}


def _default_dict(_factory: Any = None) -> dict:
    """Returns {} for a dictionary that would make what it lacks."""
    return {}


def _set(items: Any = ()) -> set[str]:
    """Returns a set of names, as protocols before 4 write it."""
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise RefusedPickle("a set of something else than names")
    return set(items)


def _attribute(owner: Any, name: Any) -> Instance:
    """Stands for a function of torch or a method of an object of the file, neither of which anybody looks up."""
    if not isinstance(owner, Global | Instance) or not isinstance(name, str):
        raise RefusedPickle("it names builtins.getattr for something else than a method")
    return Instance("attribute")


def _enumerated(value: Any) -> str:
    """Returns the name of a member of an enumeration."""
    if not isinstance(value, str | int):
        raise RefusedPickle("a member of an enumeration without a name")
    return str(value)


def _inert(name: str) -> Callable[..., Instance]:
    """Returns a stand-in for a function of which only the name is kept."""
    return lambda *_: Instance(name)


# Of everything that torch.save writes.
TENSOR_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "collections.OrderedDict": _empty_dict,
    "__builtin__.set": _set,  # as protocol 2 calls it
    "torch.device": _inert("device"),
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **TENSOR_FUNCTIONS,
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct,
    "eg3d.torch_utils.persistence._reconstruct_persistent_obj": _reconstruct,
    "src.torch_utils.persistence._reconstruct_persistent_obj": _reconstruct,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "dnnlib.util.EasyDict": _empty_dict,
    "eg3d.dnnlib.util.EasyDict": _empty_dict,
    "src.dnnlib.util.EasyDict": _empty_dict,
    "collections.defaultdict": _default_dict,
    "builtins.set": _set,
    # Python calls that objects of GGHead's files hold by name; nothing here calls them.
    "builtins.getattr": _attribute,
    "gghead.config.gaussian_attribute.GaussianAttribute": _enumerated,
    **{
        name: _inert("function")
        for name in (
            "torch._C._VariableFunctionsClass",
            "torch.nn.functional.normalize",
            "gaussian_splatting.utils.general_utils.build_covariance_from_scaling_rotation",
            "gaussian_splatting.utils.general_utils.inverse_sigmoid",
        )
    },
    # Constants on the Python side of a module; nothing here needs their values.
    **{
        name: _inert(restricted_pickle.NUMPY_VALUE)
        for core in ("numpy.core", "numpy._core")
        for name in (f"{core}.multiarray.scalar", f"{core}.multiarray._reconstruct", "numpy.dtype")
    },
}


# ---------------------------------------------------------------- files and networks


def file_of(path: str | os.PathLike) -> Path:
    """Returns the newest checkpoint of a run folder of GGHead (checkpoints/checkpoint-N.pkl), or the path itself."""
    found = [(int(m[1]), p) for p in Path(path).glob("checkpoints/*.pkl") if (m := _IN_FOLDER.fullmatch(p.name))]
    return max(found)[1] if found else Path(path)


def is_published(path: str | os.PathLike) -> bool:
    """Says whether the file is a bare pickle, as published checkpoints are and ours are not. See `file_of`."""
    try:
        with open(file_of(path), "rb") as file:
            start = file.read(len(_TORCH_START))
    except OSError:
        return False  # whoever opens it next says why it cannot be read
    return start.startswith(_PICKLE_START) and start != _TORCH_START


@dataclass
class StoredNetwork:
    """Lists the tensors and modules of a network in a file."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)  # by the names of a state dict
    parameters: list[str] = field(default_factory=list)  # names, in the order in which the optimiser saw them
    modules: dict[str, Instance] = field(default_factory=dict)  # dotted path -> module; "" is the network

    def attribute(self, path: str, name: str, default: Any) -> Any:
        """Returns a plain attribute of a module, or the default where the file has none."""
        module = self.modules.get(path)
        return default if module is None else module.state.get(name, default)


class StoredFile:
    """A published file, open. Its records are inert, and its tensors stay in the file until they are read."""

    def __init__(self, path: Path, records: dict[str, Any], size: int):
        self.path, self.records = path, records
        self._bytes_left = COPIES * size  # that its tensors may still take
        self._networks: dict[str, StoredNetwork] = {}

    def add(self, name: str, network: StoredNetwork) -> None:
        """Adds a network whose tensors a record holds without their names."""
        self._networks[name] = network

    def network(self, name: str) -> StoredNetwork | None:
        """Lists the network in the record `name`; None where the file has none. Raises RefusedPickle."""
        if self.records.get(name) is None:
            return None
        if name not in self._networks:
            self._networks[name] = _list_network(self.records[name])
        return self._networks[name]

    def read(self, tensor: StoredTensor) -> Tensor:
        """Copies a tensor out of the file. Raises RefusedPickle once all copies are far larger than the file."""
        self._bytes_left -= tensor.nbytes
        if self._bytes_left < 0:
            raise RefusedPickle(f"its tensors together are more than {COPIES} times as large as the file")
        return tensor.read()


def open_file(path: str | os.PathLike, classes: Collection[str] = ()) -> StoredFile:
    """Opens a published checkpoint. Raises RefusedPickle, without the path, and OSError.

    classes: full names of further plain classes whose objects may occur; they become inert records.
    The file is mapped, not read: a tensor costs memory when it is read.
    """
    with open(path, "rb") as file:
        # A private copy-on-write view, since torch wants buffers that it may write to.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    inert = {"numpy.ndarray", *classes}

    def is_class(name: str) -> bool:
        return name in inert or name.startswith("torch.nn.modules.")

    records, used = restricted_pickle.load(data, _FUNCTIONS, is_class)
    if used != len(data):
        raise RefusedPickle(f"{len(data) - used:,} bytes follow its end")
    if not isinstance(records, dict) or not all(isinstance(name, str) for name in records):
        raise RefusedPickle("it holds no dictionary of records")
    return StoredFile(Path(path), records, len(data))


def _list_network(root: Any) -> StoredNetwork:
    """Lists the tensors of a module and its submodules. Raises RefusedPickle for what is no module."""
    found = StoredNetwork()
    for path, module in _modules(root, "", 0):
        if len(found.modules) >= MAX_MODULES:
            raise RefusedPickle(f"more than {MAX_MODULES:,} modules")
        if path in found.modules:
            raise RefusedPickle(f"two modules are called {path}")
        found.modules[path] = module
        transient = module.state.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _named(module, kind, path):
                if tensor is None or (kind == "_buffers" and isinstance(transient, set) and name in transient):
                    continue
                full = f"{path}.{name}" if path else name
                if not isinstance(tensor, StoredTensor) or full in found.tensors:
                    raise RefusedPickle(f"{full} is not a tensor, or is there twice")
                found.tensors[full] = tensor
                if kind == "_parameters":
                    found.parameters.append(full)
    return found


def _modules(module: Any, path: str, depth: int) -> Iterator[tuple[str, Instance]]:
    """Walks depth first, a module before its parts, as torch lists parameters."""
    if not isinstance(module, Instance):
        raise RefusedPickle(f"{path or 'the network'} is not a module")
    if depth > MAX_DEPTH:
        raise RefusedPickle(f"modules nested more than {MAX_DEPTH} deep")
    yield path, module
    for name, child in _named(module, "_modules", path):
        if child is not None:
            yield from _modules(child, f"{path}.{name}" if path else name, depth + 1)


def _named(module: Instance, kind: str, path: str) -> list[tuple[str, Any]]:
    """Returns the entries of a module's `_parameters`, `_buffers` or `_modules`."""
    entries = module.state.get(kind)
    if not isinstance(entries, dict):
        raise RefusedPickle(f"{path or 'the network'} ({module.class_name[:80]}) has no {kind}")
    for name in entries:
        if not isinstance(name, str) or not name or "." in name:
            raise RefusedPickle(f"{path or 'the network'} has a part called {ascii(name)[:80]}")
    return list(entries.items())
