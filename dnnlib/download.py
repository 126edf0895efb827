"""Downloads files into a cache: each is fetched once, and is either whole or absent."""

import functools
import hashlib
import os
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlparse

CHUNK_BYTES = 1 << 20


def cache_dir(*parts: str) -> Path:
    """Returns the folder of files that can be made again: $SPLATGAN_CACHE_DIR, else ~/.cache/splatgan, plus `parts`.

    Where there is no home directory, as for a user without an account, it is a folder of temporary files, with one
    line on stderr.
    """
    return Path(os.environ.get("SPLATGAN_CACHE_DIR") or _default_cache(os.environ.get("HOME")), *parts)


@functools.cache
def _default_cache(home: str | None) -> Path:
    """Returns the cache's folder for a value of HOME; says so once where there is no home directory."""
    try:
        if home != "":
            return Path.home() / ".cache" / "splatgan"
    except RuntimeError:  # HOME is not set, and the system knows no account of this number
        pass
    number = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"splatgan-cache-{number}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # Libraries are loaded from the cache: a folder that anybody else may have made is not taken.
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != number):
            folder = Path(tempfile.mkdtemp(prefix="splatgan-cache-"))
    except OSError:
        pass  # whoever writes into the cache says that it cannot be written
    print(
        f"There is no home directory (HOME): the cache is {folder}; SPLATGAN_CACHE_DIR names another", file=sys.stderr
    )
    return folder


def download(
    url: str,
    folder: str | Path | None = None,  # where the file is kept; None: cache_dir("downloads")
    *,
    sha256: str | None = None,  # hexadecimal; the file is refused if its content differs
    attempts: int = 3,
    timeout_s: float = 60.0,  # within which a connection must answer
) -> Path:
    """Returns the local copy of `url` (http, https or file), fetched if it is not there yet.

    The file's name carries a hash of the URL, so equal base names do not collide. It appears under that name only when
    it is complete: as long as the server said, and with the right hash where one is given.

    Raises OSError with the URL and the last cause after `attempts` failures, ValueError for a wrong hash or scheme.
    """
    parsed = urlparse(url)
    if parsed.scheme not in ("http", "https", "file"):
        raise ValueError(f"cannot download {url!r}: the address must start with http://, https:// or file://")
    folder = Path(folder) if folder is not None else cache_dir("downloads")
    name = Path(unquote(parsed.path)).name or "index"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_with_retries(url, target, sha256, attempts, timeout_s)
    elif sha256 is not None and file_sha256(target) != sha256.lower():
        raise ValueError(f"{target} does not have the SHA-256 {sha256}; delete it to download it again")
    return target


def _fetch_with_retries(url: str, target: Path, sha256: str | None, attempts: int, timeout_s: float) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _fetch(url, target, sha256, timeout_s)
            return
        except OSError as error:
            # A 4xx answer stays the same however often it is asked for.
            refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if refused or attempt == attempts:
                inner = getattr(error, "reason", None)  # of a URLError, which wraps what happened
                cause = (isinstance(inner, OSError) and inner.strerror) or error
                raise OSError(f"could not download {url} (attempt {attempt} of {attempts}): {cause}") from error
            time.sleep(0.5 * 2 ** (attempt - 1))


def _fetch(url: str, target: Path, sha256: str | None, timeout_s: float) -> None:
    digest, received = hashlib.sha256(), 0
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=timeout_s) as response:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
        if expected is not None and received != int(expected):
            raise OSError(f"the connection ended after {received} of {expected} bytes")
        if sha256 is not None and digest.hexdigest() != sha256.lower():
            raise ValueError(f"{url} has the SHA-256 {digest.hexdigest()}, expected {sha256}")
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
