"""Reads a pickle as data: a stack machine of our own that cannot call anything but the functions its caller lists.

Python's unpickler imports whatever a file names and calls it. This one never imports: a name in the file is looked up
in the caller's allow-list and stands for a function of ours, or for an inert `Instance`. Everything else is refused by
its name, and so are the opcodes that no pickle of protocol 2 to 5 of plain data needs. What a file can make this reader
spend is bounded: every declared length is compared with the bytes that are left before anything is taken, bytes are
views into the file, and the number of opcodes, the stack and the size of integers have limits.

The opcodes are those of Python's pickle module, https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

NUMPY_VALUE = "numpy value"  # class name of the stand-in for what numpy makes of its arguments
MAX_OPCODES = 1_000_000  # the largest published layout (2048 px) takes 128,000; one costs at most 250 bytes or so
MAX_STACK = 100_000  # Python's pickler writes containers in runs of 1,000
MAX_MARKS = 500  # containers that are open inside each other
MAX_INT_BYTES = 16
MAX_NAME = 200  # characters of a module's or a class's name
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


class RefusedPickle(ValueError):
    """Says what in a file is damaged or outside of the allow-list, without the path."""


@dataclass(frozen=True, slots=True)
class Global:
    """Stands for a name that the allow-list has. It is never the thing that it names."""

    name: str  # module and attribute, joined by a dot


@dataclass(eq=False, slots=True)
class Instance:
    """Stands for an object of the file, inert."""

    class_name: str  # with its module where the pickle gives one
    state: dict[str, Any] = field(default_factory=dict)  # the object's __dict__
    source: str = ""  # text of the module that defined it, where the file carries one


def load(
    data: memoryview,
    functions: Mapping[str, Callable[..., Any]],  # what a listed name does when the file calls it
    is_class: Callable[[str], bool],  # names of classes whose objects become an Instance
    persistent: Callable[[Any], Any] | None = None,  # of a persistent id; None refuses them
) -> tuple[Any, int]:
    """Returns the object of the pickle at the start of `data`, and the bytes that it took. Raises RefusedPickle."""
    return _Machine(data, functions, is_class, persistent).run()


class _Machine:
    """Runs over one pickle, once. `_OPCODES` lists the legal opcodes and what they do."""

    def __init__(self, data: memoryview, functions: Mapping, is_class: Callable, persistent: Callable | None):
        self.data, self.at = data, 0
        self.functions, self.is_class, self.persistent = functions, is_class, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below the open marks
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        for _ in range(MAX_OPCODES):
            position = self.at
            code = self.take(1)[0]
            if code == pickle.STOP[0]:
                return self._result(), self.at
            name = _NAMES.get(code)
            method = _METHODS.get(code)
            if method is None:
                raise RefusedPickle(f"opcode {name or f'{code:#04x}'} at byte {position} is not part of plain data")
            try:
                method(self)
            except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
                raise RefusedPickle(
                    f"damaged at byte {position}: opcode {name} does not fit what precedes it"
                ) from error
            if len(self.stack) > MAX_STACK or len(self.marks) > MAX_MARKS:
                raise RefusedPickle(f"nested too deeply at byte {position}")
        raise RefusedPickle(f"more than {MAX_OPCODES:,} opcodes")

    def _result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise RefusedPickle(f"damaged at byte {self.at}: it stops with {len(self.stack)} objects")
        return self.stack[0]

    # ------------------------------------------------------------------ bytes

    def take(self, count: int) -> memoryview:
        """Takes the next `count` bytes, as a view."""
        left = len(self.data) - self.at
        if count > left or count < 0:
            raise RefusedPickle(f"cut short or damaged at byte {self.at}: {count:,} bytes declared, {left:,} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, layout: str) -> str:
        return str(self.take(self.number(layout)), "utf-8", "surrogatepass")

    def line(self) -> str:
        end = bytes(self.data[self.at : self.at + MAX_NAME + 1]).find(b"\n")
        if end < 0:
            raise RefusedPickle(f"cut short or damaged at byte {self.at}: a name has no end")
        return str(self.take(end + 1)[:-1], "ascii")

    def integer(self, layout: str) -> int:
        count = self.number(layout)
        if count > MAX_INT_BYTES:
            raise RefusedPickle(f"an integer of {count:,} bytes at byte {self.at}")
        return int.from_bytes(self.take(count), "little", signed=True)

    # ------------------------------------------------------------------ the stack

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples have no business as keys: hashing a deep one would exhaust the C stack. Whole optimisers
            # have tensors as keys; what stands for these is hashed by its identity.
            if not isinstance(key, str | int | float | None) and type(key).__hash__ is not object.__hash__:
                raise RefusedPickle(f"a {type(key).__name__} as the key of a dictionary")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError
        self.stack[-1].extend(items)

    # ------------------------------------------------------------------ names and calls

    def find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        full = f"{module}.{name}"
        legal = len(full) <= MAX_NAME and _NAME.fullmatch(full) and "." not in name
        if not legal or (full not in self.functions and not self.is_class(full)):
            raise RefusedPickle(f"it names {ascii(full)[1:-1][:MAX_NAME]}, which is not on the list of what may occur")
        self.stack.append(Global(full))

    def call(self, args: Any, target: Any) -> None:
        if not isinstance(target, Global) or not isinstance(args, tuple):
            raise RefusedPickle(f"it calls a {type(target).__name__}")
        if target.name in self.functions:
            self.stack.append(self.functions[target.name](*args))
        elif args:
            raise RefusedPickle(f"it calls {target.name} with arguments")
        else:
            self.stack.append(Instance(target.name))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(state, tuple) and isinstance(target, Instance) and target.class_name == NUMPY_VALUE:
            return  # the rest of a dtype
        if not isinstance(target, Instance) or not isinstance(state, dict):
            raise RefusedPickle(f"it sets the state of a {type(target).__name__} to a {type(state).__name__}")
        target.state = state

    def add_to_set(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set) or not all(isinstance(item, str | int) for item in items):
            raise RefusedPickle("a set of something else than names and numbers")
        self.stack[-1].update(items)

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise RefusedPickle("it refers to an object outside the file (a persistent id)")
        self.stack.append(self.persistent(self.stack.pop()))

    def protocol(self) -> None:
        version = self.number("<B")
        if not 2 <= version <= 5:
            raise RefusedPickle(f"pickle protocol {version}; legal are 2 to 5")

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def tuple_from_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(make(m))


# fmt: off
_OPCODES: dict[str, Callable[[_Machine], Any]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda m: m.take(8),  # a hint for readers that copy
    "MARK": _Machine.mark,
    "POP": lambda m: m.stack.pop(),
    "POP_MARK": _Machine.pop_mark,
    "DUP": _push(lambda m: m.stack[-1]),

    "NONE": _push(lambda m: None),
    "NEWTRUE": _push(lambda m: True),
    "NEWFALSE": _push(lambda m: False),
    "BININT": _push(lambda m: m.number("<i")),
    "BININT1": _push(lambda m: m.number("<B")),
    "BININT2": _push(lambda m: m.number("<H")),
    "LONG1": _push(lambda m: m.integer("<B")),
    "LONG4": _push(lambda m: m.integer("<I")),
    "BINFLOAT": _push(lambda m: m.number(">d")),

    "BINUNICODE": _push(lambda m: m.text("<I")),
    "SHORT_BINUNICODE": _push(lambda m: m.text("<B")),
    "BINUNICODE8": _push(lambda m: m.text("<Q")),
    "BINBYTES": _push(lambda m: m.take(m.number("<I"))),
    "SHORT_BINBYTES": _push(lambda m: m.take(m.number("<B"))),
    "BINBYTES8": _push(lambda m: m.take(m.number("<Q"))),

    "EMPTY_TUPLE": _push(lambda m: ()),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "TUPLE": _Machine.tuple_from_mark,
    "EMPTY_LIST": _push(lambda m: []),
    "EMPTY_DICT": _push(lambda m: {}),
    "EMPTY_SET": _push(lambda m: set()),
    "APPEND": lambda m: m.extend([m.stack.pop()]),
    "APPENDS": lambda m: m.extend(m.pop_mark()),
    "SETITEM": lambda m: m.pairs([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m: m.pairs(m.pop_mark()),
    "ADDITEMS": _Machine.add_to_set,

    "BINPUT": lambda m: m.put(m.number("<B")),
    "LONG_BINPUT": lambda m: m.put(m.number("<I")),
    "MEMOIZE": lambda m: m.put(len(m.memo)),
    "BINGET": _push(lambda m: m.memo[m.number("<B")]),
    "LONG_BINGET": _push(lambda m: m.memo[m.number("<I")]),

    "GLOBAL": lambda m: m.find(m.line(), m.line()),
    "STACK_GLOBAL": lambda m: m.find(m.stack.pop(-2), m.stack.pop()),
    "REDUCE": lambda m: m.call(m.stack.pop(), m.stack.pop()),
    "NEWOBJ": lambda m: m.call(m.stack.pop(), m.stack.pop()),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
# fmt: on

_NAMES = {value[0]: name for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes)}
_METHODS = {getattr(pickle, name)[0]: method for name, method in _OPCODES.items()}
