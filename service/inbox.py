"""Files that appear in a folder, for a worker to load: INBOX/<cache>/<category>/<file>.

A file is taken once it looks the same at two polls. What was loaded goes to `loaded/` beside it, what cannot
be read to `refused/` with a text that says why. Names that begin with a dot or end in .partial are left
alone, as are links, files of other kinds, and names that are not UTF-8. A file that takes another's place
while that one is read is left for the next polls.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from service.errors import ServiceError

FILE_SUFFIXES = (".jsonl", ".npz", ".npy", ".parquet")
LOADED, REFUSED = "loaded", "refused"

logger = logging.getLogger(__name__)


class RefusedFileError(ServiceError):
    """A file that will not be loaded, however often it is tried; the message is for who put it there."""

    default_reason = "FILE_REFUSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What came of a file: rows stored, and rows whose id, or whose scope and text, was stored already.

    digest: of the content that was read, as `InboxFile.digest` has it.
    """

    stored_count: int
    skipped_count: int
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVersion:
    """By what a file is told from another one under its name, without reading it."""

    inode: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxFile:
    """A file of the inbox, of rows for one category of one cache.

    version: what was there when the file was found; it alone is moved. None: no file was there.
    """

    path: Path
    cache: str
    category: str
    version: FileVersion | None = None

    @property
    def source(self) -> str:
        """How its job names it."""
        return f"{self.cache}/{self.category}/{self.path.name}"

    def changed_ms(self) -> int:
        """When it was last changed or put there. Raises: OSError."""
        return self.path.stat().st_ctime_ns // 1_000_000

    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal. Cost O(size). Raises: OSError."""
        with self.path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def keep_loaded(self) -> None:
        """Put it to those that were loaded, unless another file took its place. Raises: OSError."""
        place = _free_place(self.path, LOADED)
        if self._is_there():
            self.path.rename(place)

    def refuse(self, reason: str) -> None:
        """Put it to those that were refused, the reason beside it, unless another file took its place.

        Raises: OSError.
        """
        place = _free_place(self.path, REFUSED)
        if not self._is_there():
            return
        try:
            place.with_name(f"{place.name}.txt").write_text(
                f"{reason}\n", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            logger.error("why %s is refused cannot be written: %s: %s", self.source, reason, error)
        self.path.rename(place)
        logger.warning("%s is refused: %s", self.source, reason)

    def _is_there(self) -> bool:
        """Whether the path still is the file that was found. Raises: OSError."""
        if _version_of(self.path.lstat()) == self.version:
            return True
        logger.warning("%s was replaced meanwhile: the new file is left for the next polls", self.source)
        return False


FileLoader = Callable[[Engine, InboxFile, Callable[[str, int, int], None]], FileReport]
"""Loads a file whose cache exists, telling "check" and "load", in rows. Raises: RefusedFileError."""


class Inbox:
    """One worker's view of the folder, from poll to poll."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, FileVersion] = {}
        self._unnamed: frozenset[Path] = frozenset()

    def settled(self) -> list[InboxFile]:
        """Files that look as they did at the last call. Raises: OSError."""
        seen: dict[Path, FileVersion] = {}
        unnamed: set[Path] = set()
        found = []
        for path in self._paths():
            if not _is_utf8(path):
                unnamed.add(path)
                continue
            version = _regular(path)
            if version is None:
                continue
            seen[path] = version
            if self._seen.get(path) == version:
                cache, category = path.parts[-3:-1]
                found.append(InboxFile(path=path, cache=cache, category=category, version=version))
        for path in sorted(unnamed - self._unnamed):
            logger.warning("%a is left alone: its name is not UTF-8", str(path))
        self._seen, self._unnamed = seen, frozenset(unnamed)
        return found

    def file_of(self, source: str) -> InboxFile:
        """The file that a job names, as it is now. Raises: OSError."""
        cache, category, name = source.split("/")
        path = self._folder / cache / category / name
        try:
            version = _version_of(path.lstat())
        except FileNotFoundError:
            version = None
        return InboxFile(path=path, cache=cache, category=category, version=version)

    def _paths(self) -> Iterator[Path]:
        for cache in _visible(self._folder.iterdir()):
            for category in _listed(cache):
                yield from (path for path in _listed(category) if path.suffix in FILE_SUFFIXES)


def _regular(path: Path) -> FileVersion | None:
    """The version of a file; None for what is none, is gone, or cannot be looked at."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None  # moved or taken away meanwhile
    except OSError as error:
        logger.error("%s cannot be looked at: %s", path, error)
        return None
    return _version_of(found) if stat.S_ISREG(found.st_mode) else None


def _version_of(found: os.stat_result) -> FileVersion:
    return FileVersion(inode=found.st_ino, size_bytes=found.st_size, modified_ns=found.st_mtime_ns)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it cannot be read, so that others can be."""
    try:
        return _visible(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        logger.error("%s cannot be read: %s", folder, error)
        return []


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))


def _free_place(path: Path, folder_name: str) -> Path:
    """Where no file is yet: under its own name, or a numbered one."""
    folder = path.parent / folder_name
    folder.mkdir(exist_ok=True)
    place = folder / path.name
    number = 1
    while place.exists():
        number += 1
        place = folder / f"{path.stem}-{number}{path.suffix}"
    return place
