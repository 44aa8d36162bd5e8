"""Files that appear in a folder, for a worker to load: INBOX/<cache>/<category>/<file>.

A file is taken once it looks the same at two polls. What was loaded goes to `loaded/` beside it, what cannot
be read to `refused/` with a text that says why. Names that begin with a dot or end in .partial are left
alone, as are links, and files of other kinds.
"""

import logging
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
    """What came of a file: rows stored, and rows whose id, or whose scope and text, was stored already."""

    stored_count: int
    skipped_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxFile:
    """A file of the inbox, of rows for one category of one cache."""

    path: Path
    cache: str
    category: str

    @property
    def source(self) -> str:
        """How its job names it."""
        return f"{self.cache}/{self.category}/{self.path.name}"

    def changed_ms(self) -> int:
        """When it was last changed or put there. Raises: OSError."""
        return self.path.stat().st_ctime_ns // 1_000_000

    def keep_loaded(self) -> None:
        """Put it to those that were loaded. Raises: OSError."""
        self.path.rename(_free_place(self.path, LOADED))

    def refuse(self, reason: str) -> None:
        """Put it to those that were refused, the reason beside it. Raises: OSError."""
        place = _free_place(self.path, REFUSED)
        try:
            place.with_name(f"{place.name}.txt").write_text(f"{reason}\n", encoding="utf-8")
        except OSError as error:
            logger.error("why %s is refused cannot be written: %s: %s", self.source, reason, error)
        self.path.rename(place)
        logger.warning("%s is refused: %s", self.source, reason)


FileLoader = Callable[[Engine, InboxFile, Callable[[str, int, int], None]], FileReport]
"""Loads a file whose cache exists, telling "check" and "load", in rows. Raises: RefusedFileError."""


class Inbox:
    """One worker's view of the folder, from poll to poll."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int, int]] = {}

    def settled(self) -> list[InboxFile]:
        """Files that look as they did at the last call. Raises: OSError."""
        seen: dict[Path, tuple[int, int, int]] = {}
        found = []
        for file in self._files():
            try:
                state = file.path.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # moved or taken away meanwhile
            seen[file.path] = (state.st_ino, state.st_size, state.st_mtime_ns)
            if self._seen.get(file.path) == seen[file.path]:
                found.append(file)
        self._seen = seen
        return found

    def file_of(self, source: str) -> InboxFile:
        """The file that a job names."""
        cache, category, name = source.split("/")
        return InboxFile(path=self._folder / cache / category / name, cache=cache, category=category)

    def _files(self) -> Iterator[InboxFile]:
        for cache in _visible(self._folder.iterdir()):
            for category in _listed(cache):
                for path in _listed(category):
                    if path.suffix in FILE_SUFFIXES and path.is_file() and not path.is_symlink():
                        yield InboxFile(path=path, cache=cache.name, category=category.name)


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
