"""Files made to run code or to exhaust the machine: refused with one line, nothing run, memory bounded.

Every payload would leave a trace if it ran: a file in the working directory, or a variable of the process.
"""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn

from tests.training.published import file_writer as writer
from training import checkpoint
from training.published import pickle_file, restricted_pickle
from training.published.records import is_published

CANARY = "executed"
OPCODES = 100_000  # stands in for the limit of a million, which takes ten seconds to reach
TOUCH = f"open({CANARY!r}, 'w').close()"
MOST_MEMORY = (
    64 * 2**20
)  # bytes that Python may take to refuse a small file; worst seen 17.2 MiB (torch, deep lists), 6.2 by our reader


class Reduces:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class SetsState:
    """Pickles by name, with a state for its __setstate__."""

    def __getstate__(self):
        return {"x": 1}

    def __setstate__(self, state):
        open(CANARY, "w").close()


def op(code: str, data: bytes = b"") -> bytes:
    return getattr(pickle, code) + data


def text(value: str) -> bytes:
    return op("SHORT_BINUNICODE", bytes([len(value)]) + value.encode())


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + op("STACK_GLOBAL")


def call(function: bytes, *args: bytes) -> bytes:
    return function + op("MARK") + b"".join(args) + op("TUPLE") + op("REDUCE")


def raw(*parts: bytes, protocol: int = 4) -> bytes:
    return op("PROTO", bytes([protocol])) + b"".join(parts) + op("STOP")


def in_g_ema(value) -> bytes:
    """A file whose G_ema is a module with `value` among its attributes."""
    with writer.published_names():
        empty = {"_parameters": {}, "_buffers": {}, "_modules": {}, "payload": value}
        return pickle.dumps({"G_ema": writer.Persistent("Network", "", empty)}, protocol=4)


def storage_bytes(payload: bytes) -> bytes:
    """A tensor's storage whose bytes are `payload`."""
    return raw(
        call(name("torch.storage", "_load_from_bytes"), op("BINBYTES", struct.pack("<I", len(payload)) + payload))
    )


def legacy_storage(count: int, numbers: bytes = b"\0" * 8, kind: str = "FloatStorage") -> bytes:
    """What torch.save's old format says of a storage of `count` floats, followed by `numbers`."""
    identity = op("MARK") + text("storage") + op("GLOBAL", f"torch\n{kind}\n".encode()) + text("0") + text("cpu")
    identity += op("LONG1", bytes([9]) + count.to_bytes(9, "little")) + op("NONE") + op("TUPLE") + op("BINPERSID")
    magic = op("LONG1", bytes([10]) + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))
    heads = [magic, op("BININT2", struct.pack("<H", 1001)), pickle.dumps({"little_endian": True}, protocol=2)[2:-1]]
    heads += [identity, op("EMPTY_LIST") + text("0") + op("APPEND")]
    return b"".join(raw(head, protocol=2) for head in heads) + struct.pack("<Q", count % 2**64) + numbers


def tensor(size: bytes, stride: bytes, offset: int = 0) -> bytes:
    storage = call(name("torch.storage", "_load_from_bytes"), op("BINBYTES", struct.pack("<I", len(_TWO)) + _TWO))
    return raw(
        call(
            name("torch._utils", "_rebuild_tensor_v2"),
            storage,
            op("BININT", struct.pack("<i", offset)),
            size,
            stride,
            op("NEWFALSE"),
            op("NONE"),
        )
    )


_TWO = legacy_storage(2)
_HUGE = op("LONG1", b"\x06" + (2**40).to_bytes(6, "little"))
_RECONSTRUCT = name("torch_utils.persistence", "_reconstruct_persistent_obj")


def hostile() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, what the refusal says)."""
    system = name("os", "system")
    command = text(f"touch {CANARY}")
    cycle = op("EMPTY_DICT") + op("MEMOIZE") + text("_modules") + op("BINGET", b"\0") + op("SETITEM")
    with writer.published_names():
        leaf = writer.Persistent("L", "", {"_parameters": {}, "_buffers": {}, "_modules": {}})
        for _ in range(25):  # each level holds the one below twice: 2^25 paths in a few hundred bytes
            leaf = writer.Persistent("L", "", {"_parameters": {}, "_buffers": {}, "_modules": {"a": leaf, "b": leaf}})
        doubling = pickle.dumps({"G_ema": leaf}, protocol=4)
        chain = writer.Persistent("L", "", {"_parameters": {}, "_buffers": {}, "_modules": {}})
        for _ in range(40):
            chain = writer.Persistent("L", "", {"_parameters": {}, "_buffers": {}, "_modules": {"a": chain}})
        deep_modules = pickle.dumps({"G_ema": chain}, protocol=4)
    return {
        "os.system by __reduce__": (pickle.dumps(Reduces(os.system, f"touch {CANARY}")), "names posix.system"),
        "builtins.eval": (in_g_ema(Reduces(eval, TOUCH)), "names builtins.eval"),
        "builtins.exec": (in_g_ema(Reduces(exec, TOUCH)), "names builtins.exec"),
        "getattr chain": (
            raw(
                call(
                    call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system")),
                    command,
                )
            ),
            "names builtins.__import__",
        ),
        "dotted name through a module": (
            raw(call(name("torch.nn.modules.linear", "torch.os.system"), command)),
            "names torch.nn.modules.linear.torch.os.system",
        ),
        "dotted name through an allowed function": (
            raw(call(name("torch._utils", "_rebuild_tensor_v2.__globals__"), command)),
            "names torch._utils._rebuild_tensor_v2.__globals__",
        ),
        "a class called with arguments": (
            raw(call(name("torch.nn.modules.linear", "Linear"), command)),
            "calls torch.nn.modules.linear.Linear with arguments",
        ),
        "payload inside a storage's bytes": (
            storage_bytes(pickle.dumps(Reduces(os.system, f"touch {CANARY}"), protocol=2)),
            "names posix.system",
        ),
        "zip payload inside a storage's bytes": (
            storage_bytes(_saved(Reduces(os.system, f"touch {CANARY}"))),
            "damaged|not part of plain data|cut short",
        ),
        "module_src that is a call": (
            raw(call(_RECONSTRUCT, op("EMPTY_DICT") + text("module_src") + call(system, command) + op("SETITEM"))),
            "names os.system",
        ),
        "class_name that is a call": (
            raw(
                call(
                    _RECONSTRUCT,
                    op("EMPTY_DICT") + text("class_name") + call(name("builtins", "eval"), text(TOUCH)) + op("SETITEM"),
                )
            ),
            "names builtins.eval",
        ),
        "__setstate__": (in_g_ema(SetsState()), "SetsState, which is not on the list"),
        "state of an allowed function": (
            raw(
                name("torch._utils", "_rebuild_parameter"),
                op("EMPTY_DICT"),
                text("__call__"),
                command,
                op("SETITEM"),
                op("BUILD"),
            ),
            "sets the state of a Global",
        ),
        "state set on a class's slots": (
            raw(op("EMPTY_TUPLE"), op("NONE"), op("EMPTY_DICT"), op("TUPLE2"), op("BUILD")),
            "sets the state of a tuple",
        ),
        "call of a call's result": (raw(call(call(name("collections", "OrderedDict")), command)), "calls a dict"),
        "call of a string": (raw(call(text("os.system"), command)), "calls a str"),
        "persistent id with a callable": (
            raw(
                op("MARK"),
                text("storage"),
                system,
                text("0"),
                text("cpu"),
                op("BININT1", b"\1"),
                op("NONE"),
                op("TUPLE"),
                op("BINPERSID"),
            ),
            "names os.system",
        ),
        "persistent id at the top": (raw(text("x"), op("BINPERSID")), "outside the file"),
        "persistent id with a string for its type": (
            storage_bytes(legacy_storage(2).replace(b"ctorch\nFloatStorage\n", text("os.system"))),
            "unknown record",
        ),
        "opcode INST": (
            op("PROTO", b"\2") + op("MARK") + b"Vtouch executed\n" + op("INST", b"os\nsystem\n") + op("STOP"),
            "opcode UNICODE",
        ),
        "opcode OBJ": (raw(op("MARK"), system, op("OBJ")), "names os.system"),
        "opcode EXT1": (raw(op("EXT1", b"\1")), "opcode EXT1"),
        "opcode NEWOBJ_EX": (
            raw(name("torch.nn.modules.linear", "Linear"), op("EMPTY_TUPLE"), op("EMPTY_DICT"), op("NEWOBJ_EX")),
            "opcode NEWOBJ_EX",
        ),
        "memo that is not there": (raw(op("BINGET", b"\7")), "opcode BINGET does not fit"),
        "stack below its floor": (raw(op("POP"), op("POP"), op("TUPLE3")), "opcode POP does not fit"),
        "mark that is not there": (raw(op("TUPLE")), "opcode TUPLE does not fit"),
        "two objects at the end": (raw(text("a"), text("b")), "stops with 2 objects"),
        "name from a number": (
            raw(op("BININT1", b"\1"), text("system"), op("STACK_GLOBAL")),
            "opcode STACK_GLOBAL does not fit",
        ),
        "name with a line break": (raw(name("torch.nn.modules.\nx", "Linear")), "not on the list"),
        "bytes of 2 GiB": (raw(op("BINBYTES8", struct.pack("<Q", 2**31))), "2,147,483,648 bytes declared"),
        "bytes of 2^63": (raw(op("BINBYTES8", struct.pack("<Q", 2**63))), "bytes declared"),
        "text of 2 GiB": (raw(op("BINUNICODE8", struct.pack("<Q", 2**31))), "2,147,483,648 bytes declared"),
        "integer of 2 GiB": (raw(op("LONG4", struct.pack("<I", 2**31 - 1))), "an integer of 2,147,483,647 bytes"),
        "bytearray of 2 GiB": (raw(op("BYTEARRAY8", struct.pack("<Q", 2**31)), protocol=5), "opcode BYTEARRAY8"),
        "storage of 2 GiB": (storage_bytes(legacy_storage(2**29)), "declares 536,870,912 numbers"),
        "storage of -1 numbers": (storage_bytes(legacy_storage(-1 % 2**64)), "a storage that declares"),
        "tensor of 2^40 by stride 0": (
            tensor(_HUGE + op("TUPLE1"), op("BININT1", b"\0") + op("TUPLE1")),
            "in a storage of 2 numbers",
        ),
        "tensor beyond its storage": (
            tensor(op("BININT1", b"\2") + op("TUPLE1"), op("BININT1", b"\1") + op("TUPLE1"), offset=1),
            "in a storage of 2 numbers",
        ),
        "tensor before its storage": (
            tensor(op("BININT1", b"\1") + op("TUPLE1"), op("BININT1", b"\1") + op("TUPLE1"), offset=-1),
            "impossible size",
        ),
        "deep lists": (raw(op("EMPTY_LIST") * 200_000, op("APPEND") * 199_999), "nested too deeply"),
        "deep tuples": (raw(op("EMPTY_TUPLE"), op("TUPLE1") * 100_000), "no dictionary of records"),
        "deep tuple as a key": (
            raw(op("EMPTY_DICT"), op("EMPTY_TUPLE"), op("TUPLE1") * 100_000, op("NONE"), op("SETITEM")),
            "a tuple as the key",
        ),
        "deep marks": (raw(op("MARK") * 100_000), "nested too deeply"),
        "endless opcodes": (raw((op("NONE") + op("POP")) * 60_000), f"more than {OPCODES:,} opcodes"),
        "a module within itself": (
            raw(
                op("EMPTY_DICT"),
                text("G_ema"),
                call(_RECONSTRUCT, op("EMPTY_DICT") + text("state") + cycle + op("SETITEM")),
                op("SETITEM"),
            ),
            "not a class",
        ),
        "2^25 paths to one module": (doubling, "more than 20,000 modules"),
        "modules 40 deep": (deep_modules, "nested more than 32 deep"),
        "another version of the format": (raw(call(_RECONSTRUCT, op("EMPTY_DICT"))), "not of version 6"),
        "bytes after the end": (raw(op("EMPTY_DICT")) + b"more", "4 bytes follow its end"),
        "protocol 9": (raw(op("NONE"), protocol=9), "pickle protocol 9"),
    }


def _saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


HOSTILE = hostile()


@pytest.fixture
def no_trace(tmp_path, monkeypatch):
    """Works in an empty folder; afterwards nothing has run there, and no function of ours was changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a payload ran"))
    before = dict(vars(restricted_pickle)), dict(vars(pickle_file)["_FUNCTIONS"])
    yield tmp_path
    assert not (tmp_path / CANARY).exists()
    assert (dict(vars(restricted_pickle)), dict(vars(pickle_file)["_FUNCTIONS"])) == before


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickle(kind, no_trace):
    content, message = HOSTILE[kind]
    path = no_trace / "net.pkl"
    path.write_bytes(content)
    assert is_published(path)
    started = time.process_time()
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        if kind == "endless opcodes":
            patch.setattr(restricted_pickle, "MAX_OPCODES", OPCODES)
        try:
            for load in (checkpoint.load_checkpoint, checkpoint.load_generator):
                with pytest.raises(checkpoint.CheckpointError, match=rf"net\.pkl: .*({message})") as caught:
                    load(path)
                assert "\n" not in str(caught.value)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert time.process_time() - started < 120  # each takes a few at most


def small_file(path):
    """A whole file of a network with two tensors, in every other way like a published one."""
    network = nn.Module()
    network.point_gen = nn.Module()
    network.point_gen.transformer = nn.Module()
    network.point_gen.transformer.weight = nn.Parameter(torch.ones(2, 3))
    network.register_buffer("scale", torch.zeros(2))
    return writer.write(path, {"G_ema": network}, optimizers=False).read_bytes()


def test_truncation_at_every_tenth_byte(no_trace):
    whole = small_file(no_trace / "whole.pkl")
    with pytest.raises(checkpoint.CheckpointError, match="not a published generator: it has heads for 0 levels"):
        checkpoint.load_generator(no_trace / "whole.pkl")
    path = no_trace / "short.pkl"
    for length in range(1, len(whole), 10):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError, match=r"short\.pkl: .*(cut short|damaged)"):
            checkpoint.load_generator(path)


def test_no_flipped_byte_gives_more_than_one_line(no_trace):
    whole = small_file(no_trace / "whole.pkl")
    path = no_trace / "flipped.pkl"
    for position in range(2, len(whole), 3):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        with pytest.raises(checkpoint.CheckpointError) as caught:
            checkpoint.load_generator(path)
        assert "\n" not in str(caught.value)


def as_ours(content: bytes) -> bytes:
    """A checkpoint of ours whose pickled records are `content`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", content)
        archive.writestr("net/byteorder", "little")
        archive.writestr("net/version", "3\n")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_same_in_a_checkpoint_of_ours(kind, no_trace):
    path = no_trace / "net.pkl"
    path.write_bytes(as_ours(HOSTILE[kind][0]))
    tracemalloc.start()
    try:
        for load in (checkpoint.load_checkpoint, checkpoint.load_generator):
            with pytest.raises(checkpoint.CheckpointError, match=r"net\.pkl: ") as caught:
                load(path)
            assert "\n" not in str(caught.value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr])
def test_a_payload_among_the_tensors_of_a_checkpoint_of_ours(function, no_trace, checkpoint_path):
    state = checkpoint.load_checkpoint(checkpoint_path)
    state["progress"] = {**state["progress"], "nimg": Reduces(function, TOUCH)}
    torch.save(state, no_trace / "net.pkl")
    with pytest.raises(checkpoint.CheckpointError, match="refused, it holds more than tensors"):
        checkpoint.load_checkpoint(no_trace / "net.pkl")
