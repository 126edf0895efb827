"""Reads the files of an image set from a folder or a zip through one interface, trusting neither.

Imports no torch, so that worker processes start quickly.
"""

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from dnnlib import cache_dir
from training.data.file_hashes import file_hashes

MAX_BYTES = 1 << 28  # size limit of one image or mask; a 2048 px PNG has at most 1 << 24
MAX_JSON_BYTES = 1 << 31  # size limit of a JSON file; labels of 5 million images reach it
_MAX_RATIO = 200  # largest compression ratio of a zip member above _RATIO_FROM bytes; label files reach 50
_RATIO_FROM = 1 << 20  # bytes of a zip member from which on its compression ratio is checked
_LOCAL_HEADER = 30  # bytes of a zip member's local header, before its name and extra field
_LOCAL_MAGIC = b"PK\x03\x04"  # the first bytes of a local header
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}


class DatasetError(ValueError):
    """Reports an image set that cannot be read; the message names the file."""


class Listing(NamedTuple):
    """Lists the files below a folder in the order of their names, and one line for each that cannot be used."""

    names: list[str]  # relative to the store, "/" between folders
    problems: list[str]  # one line per file that cannot be used


class Store(Protocol):
    """Reads files by name; safe in several threads and in forked and spawned processes."""

    path: Path

    def where(self, name: str) -> str: ...  # the file's name in messages

    def listing(self, folder: str) -> Listing: ...  # "" is the top

    def has(self, name: str) -> bool: ...

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes: ...  # raises DatasetError

    def contents(self, names: Sequence[str]) -> list[str]: ...  # per file its size and checksum

    def marks(self, names: Sequence[str]) -> list[str]: ...  # per file a cheap mark that changes if it is touched


def join(*parts: str) -> str:
    """Joins names of folders and files by "/"; leaves out empty ones."""
    return "/".join(part for part in parts if part)


def printable(name: str) -> str:
    """Returns a file name that any terminal can print: line ends and what is not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def open_store(path: str | os.PathLike[str]) -> "FolderStore | ZipStore":
    path = Path(os.path.abspath(path))
    return ZipStore(path) if is_zip(path) else FolderStore(path)


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def _is_hidden(name: str) -> bool:
    """Tells whether a file is one that file managers leave behind."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class FolderStore:
    """Reads the files below a folder. Links may point to files below the folder that is listed, nowhere else."""

    def __init__(self, path: Path):
        self.path = path

    def where(self, name: str) -> str:
        return printable(str(self.path / name))

    def listing(self, folder: str) -> Listing:
        found = Listing([], [])
        inside = os.path.realpath(self.path / folder)
        self._walk(folder, inside, found)
        found.names.sort()
        return found

    def _walk(self, folder: str, inside: str, found: Listing) -> None:
        try:
            with os.scandir(self.path / folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.problems.append(f"{self.where(folder)}: cannot be listed: {error.strerror}")
            return
        for entry in children:
            name = join(folder, entry.name)
            if _is_hidden(entry.name):
                continue
            problem = self._problem_of(entry, name, inside)
            if problem:
                found.problems.append(f"{self.where(name)}: {problem}")
            elif entry.is_dir():
                self._walk(name, inside, found)
            elif entry.is_file():
                found.names.append(name)

    @staticmethod
    def _problem_of(entry: os.DirEntry[str], name: str, inside: str) -> str | None:
        if printable(entry.name) != entry.name:
            return "the file name must be UTF-8 on one line, so that labels can name it: rename it"
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.path.isdir(target):
                return "is a link to a folder; only links to files of the set are followed: remove it"
            if not target.startswith(inside + os.sep):
                return f"is a link out of the set, to {printable(target)}: put a copy in its place"
            if not os.path.exists(target):
                return "is a link to nothing: remove it"
        return None

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        try:
            with open(self.path / name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > limit:
                    raise DatasetError(f"{self.where(name)}: has {size} bytes; {limit} are legal")
                return file.read()
        except FileNotFoundError:
            raise DatasetError(f"{self.where(name)}: not found; was the set moved or deleted?") from None
        except OSError as error:
            raise DatasetError(f"{self.where(name)}: cannot be read: {error.strerror}") from error

    def contents(self, names: Sequence[str]) -> list[str]:
        paths = [self.path / name for name in names]
        try:
            hashes = file_hashes(paths, cache_dir("file-hashes"))
            return [f"{path.stat().st_size} {hashes[path]}" for path in paths]
        except FileNotFoundError as error:
            raise DatasetError(f"{error.filename}: not found; was the set moved or deleted?") from error

    def marks(self, names: Sequence[str]) -> list[str]:
        stats = [(self.path / name).stat() for name in names]
        return [f"{s.st_size} {s.st_mtime_ns} {s.st_ino}" for s in stats]


class ZipStore:
    """Reads the members of a zip at their offsets: no position is shared between threads or forked processes.

    Members that are damaged, encrypted, of another compression than deflate, links, or named so that unpacking them
    would write elsewhere, are problems of the listing. Raises DatasetError if the file is no zip.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: tuple[int, int] | None = None  # (process, file descriptor)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._problems: list[str] = []
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged or cut short"
            raise DatasetError(f"{printable(str(path))}: is not a whole zip file: {cause}") from error
        for info in infos:
            self._admit(info)

    def _admit(self, info: zipfile.ZipInfo) -> None:
        name, problem = _member_name(info)
        if name in self._members:
            problem = "is in the zip twice"
        problem = problem or _member_problem(info, name)
        if problem:
            self._problems.append(f"{self.where(name)}: {problem}")
        elif not info.is_dir() and not _is_hidden(name):
            self._members[name] = info

    def where(self, name: str) -> str:
        return printable(f"{self.path}/{name}" if name else str(self.path))

    def listing(self, folder: str) -> Listing:
        prefix = folder + "/" if folder else ""
        return Listing(sorted(name for name in self._members if name.startswith(prefix)), list(self._problems))

    def has(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise DatasetError(f"{self.where(name)}: not found in the zip")
        if info.file_size > limit:
            raise DatasetError(f"{self.where(name)}: has {info.file_size} bytes; {limit} are legal")
        try:
            data = self._unpack(info)
        except zipfile.BadZipFile as error:  # raised by `_unpack`, whose words they are
            raise DatasetError(f"{self.where(name)}: cannot be read from the zip: {error}") from error
        except (OSError, struct.error, zlib.error) as error:
            cause = error.strerror if isinstance(error, OSError) else "its packed content is damaged"
            raise DatasetError(f"{self.where(name)}: cannot be read from the zip: {cause}") from error
        return data

    def _unpack(self, info: zipfile.ZipInfo) -> bytes:
        handle = self._handle()
        header = os.pread(handle, _LOCAL_HEADER, info.header_offset)
        if header[:4] != _LOCAL_MAGIC:
            raise zipfile.BadZipFile("no member begins where the directory says")
        skip = sum(struct.unpack("<HH", header[26:30]))
        data = os.pread(handle, info.compress_size, info.header_offset + _LOCAL_HEADER + skip)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            # One byte more than the directory says is enough to detect a wrong size; a zip bomb unpacks no further.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise zipfile.BadZipFile("size or checksum differ from the directory's, the file is damaged")
        return data

    def _handle(self) -> int:
        """Returns the process's own file descriptor."""
        if self._descriptor is None or self._descriptor[0] != os.getpid():
            self._descriptor = os.getpid(), os.open(self.path, os.O_RDONLY)
        return self._descriptor[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None and self._descriptor[0] == os.getpid():
            os.close(self._descriptor[1])
            self._descriptor = None

    def contents(self, names: Sequence[str]) -> list[str]:
        return [f"{self._members[name].file_size} {self._members[name].CRC:08x}" for name in names]

    marks = contents


def _member_name(info: zipfile.ZipInfo) -> tuple[str, str | None]:
    """Returns the member's name, and what is wrong with its spelling or None."""
    name = info.orig_filename
    if not info.flag_bits & 0x800 and not name.isascii():  # read as code page 437; most tools mean UTF-8
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            return name, "the file name must be UTF-8: pack the zip again"
    if printable(name) != name or "\0" in name:
        return printable(name).replace("\0", "\\0"), "the file name must be UTF-8 on one line: pack the zip again"
    name = name.replace("\\", "/")
    while name.startswith("./"):  # which would count as hidden
        name = name[2:].lstrip("/")
    return name.replace("/./", "/"), None


def _member_problem(info: zipfile.ZipInfo, name: str) -> str | None:
    if name.startswith("/") or name[1:2] == ":":
        return "is an absolute path; names inside the zip are legal"
    if ".." in name.split("/"):
        return "leads out of the zip by '..'; names inside the zip are legal"
    if info.is_dir():
        return None
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link; files are legal"
    if info.flag_bits & 0x1:
        return "is encrypted; plain files are legal"
    if info.compress_type not in _METHODS:
        return f"has the compression method {info.compress_type}; {' and '.join(_METHODS.values())} are legal"
    if info.file_size > MAX_JSON_BYTES:
        return f"unpacks to {info.file_size} bytes; {MAX_JSON_BYTES} are legal"
    if info.file_size > _RATIO_FROM and info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        ratio = info.file_size // max(info.compress_size, 1)
        return f"unpacks to {ratio} times its size; {_MAX_RATIO} times are legal"
    return None


def digest(lines: Iterable[str]) -> str:
    """Returns the SHA-256 over lines, in hexadecimal."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(f"{line}\n".encode())
    return sha.hexdigest()
