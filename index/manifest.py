"""Generations on disk. One root per cache:

    root/CURRENT                     the name of the generation to serve
    root/build.lock                  held by the process that builds
    root/gen-00000001/manifest.json  what the generation is made of, with checksums
    root/gen-00000001/*.segment      sealed segments (see segment_file)
    root/gen-00000001/*.hnsw         their graphs
    root/building-*, root/trash-*    leftovers of what was interrupted; removed by the next build or prune

A generation becomes visible by renaming its directory once complete, and served by replacing CURRENT.
"""

import fcntl
import json
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from index.config import IndexConfig
from index.durable import file_crc32, sync_directory, write_durably
from index.errors import (
    BuildInProgressError,
    DamagedGenerationError,
    DamagedGraphError,
    DimensionError,
)
from index.hnsw import VectorGraph
from index.rows import SegmentKey
from index.sealed_segment import SealedSegment
from index.segment_file import SegmentFile, read_segment
from index.vector_index import VectorIndex

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""From 2 on payloads may hold texts: a program that reads 1 alone would serve them with an empty response,
and has to refuse them."""

MANIFEST_FILE = "manifest.json"
CURRENT_FILE = "CURRENT"
LOCK_FILE = "build.lock"
_NAME = re.compile(r"gen-(\d{8})")
_LEFTOVER = re.compile(r"(building|trash)-\d{8}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEntry:
    """A graph file. `crc32`: of the whole file."""

    file: str
    size_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """A segment file. `crc32`: of its header, which holds the checksums of its columns."""

    file: str
    key: SegmentKey
    row_count: int
    size_bytes: int
    crc32: int
    graph: GraphEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a generation is made of. `watermark`: the last `seq` of the store that it contains."""

    generation: str
    cache: str
    code_bits: int
    label_bits: int
    watermark: int
    encoder_ids: tuple[str, ...]
    segments: tuple[SegmentEntry, ...]


def generation_name(number: int) -> str:
    """gen-00000001 for 1."""
    return f"gen-{number:08d}"


def generation_numbers(root: Path) -> list[int]:
    """Numbers of the generations under `root`, ascending, served or not."""
    matches = [_NAME.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return sorted(int(match[1]) for match in matches if match)


def last_generation_number(root: Path) -> int:
    """The highest number that a generation under `root` has or had; 0 before the first one.

    CURRENT counts: what it names may have been removed, and a process may serve it still.
    """
    try:
        current = current_generation(root)
    except DamagedGenerationError:
        current = None
    named = _NAME.fullmatch(current) if current is not None else None
    return max([*generation_numbers(root), int(named[1]) if named else 0])


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `directory`/manifest.json durably."""
    body = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    text = json.dumps({**body, "crc32": _checksum(body)}, indent=1)
    write_durably(directory / MANIFEST_FILE, [text.encode()])


def read_manifest(root: Path, name: str) -> Manifest:
    """Read the manifest of a generation.

    Raises: DamagedGenerationError, also where there is no generation of that name.
    """
    if not _NAME.fullmatch(name):
        raise DamagedGenerationError(root / name, "not the name of a generation")
    manifest = read_manifest_file(root / name / MANIFEST_FILE)
    if manifest.generation != name:
        raise DamagedGenerationError(root / name, f"is the manifest of {manifest.generation!r}")
    return manifest


def read_manifest_file(path: Path) -> Manifest:
    """Read a manifest from its path. Raises: DamagedGenerationError."""
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
        checksum = body.pop("crc32")
        version = body["format_version"]
        if version not in READABLE_VERSIONS:
            raise DamagedGenerationError(
                path, f"format version {version!r}, this version reads {READABLE_VERSIONS}"
            )
        if checksum != _checksum(body):
            raise DamagedGenerationError(path, "does not match its checksum")
        del body["format_version"]
        segments = tuple(_segment_entry(path, entry) for entry in body.pop("segments"))
        encoder_ids = tuple(body.pop("encoder_ids"))
        return Manifest(**body, encoder_ids=encoder_ids, segments=segments)
    except OSError as error:
        raise DamagedGenerationError(path, error.strerror or "cannot be read") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedGenerationError(path, f"not a manifest: {error!r}") from error


def current_generation(root: Path) -> str | None:
    """Read the name of the generation to serve; None before the first one.

    Raises: DamagedGenerationError.
    """
    path = root / CURRENT_FILE
    try:
        name = path.read_bytes().decode(errors="replace").removesuffix("\n")
    except FileNotFoundError:
        return None
    if not _NAME.fullmatch(name):
        raise DamagedGenerationError(path, f"does not name a generation: {name[:80]!r}")
    return name


def activate(root: Path, name: str) -> None:
    """Make a generation the one to serve; also how an earlier one is rolled back to.

    Raises: DamagedGenerationError, with CURRENT as it was.
    """
    read_manifest(root, name)
    write_durably(root / CURRENT_FILE, [f"{name}\n".encode()])


def open_generation(
    root: Path, name: str, *, config: IndexConfig, cache: str | None = None, threads: int = 1
) -> VectorIndex:
    """Load a generation, every checksum verified; the caller replays what came after its watermark.

    cache: the name that it must be of, None for any. threads: to load it with.
    Raises: DamagedSegmentError, DamagedGraphError, DamagedGenerationError for a manifest or files that do not
    belong together, DimensionError when the generation was built with other code or label bits than `config`
    has.
    """
    manifest = read_manifest(root, name)
    if cache is not None and manifest.cache != cache:
        raise DamagedGenerationError(root / name, f"is of cache {manifest.cache!r}, not {cache!r}")
    for what in ("code_bits", "label_bits"):
        if getattr(manifest, what) != getattr(config, what):
            expected, got = str(getattr(config, what)), str(getattr(manifest, what))
            raise DimensionError(f"{what} of {root / name}", expected=expected, got=got)

    def load(entry: SegmentEntry) -> SealedSegment:
        segment = read_listed_segment(root / name, manifest, entry)
        graph = read_listed_graph(root / name, entry, dim=segment.rows.dim)
        return SealedSegment(segment.key, segment.rows, graph=graph, lists=segment.lists, threads=inner)

    inner = max(1, threads // max(1, len(manifest.segments)))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        sealed = list(pool.map(load, manifest.segments))
    return VectorIndex(config, sealed=sealed, generation=name, watermark=manifest.watermark)


def read_listed_segment(directory: Path, manifest: Manifest, entry: SegmentEntry) -> SegmentFile:
    """Read a segment and compare it with the manifest.

    Raises: DamagedSegmentError, DamagedGenerationError.
    """
    path = directory / entry.file
    segment = read_segment(path)
    if segment.cache != manifest.cache:
        reason = f"is of cache {segment.cache!r}, the manifest of {manifest.cache!r}"
        raise DamagedGenerationError(path, reason)
    listed = (entry.key, entry.row_count, entry.size_bytes, entry.crc32)
    if listed != (segment.key, len(segment.rows), segment.size_bytes, segment.checksum):
        raise DamagedGenerationError(path, "is not the segment that the manifest lists")
    return segment


def read_listed_graph(directory: Path, entry: SegmentEntry, *, dim: int) -> VectorGraph | None:
    """Read the graph of a segment, if the manifest lists one. Raises: DamagedGraphError."""
    if entry.graph is None:
        return None
    path = directory / entry.graph.file
    try:
        listed = (entry.graph.size_bytes, entry.graph.crc32)
        if listed != (path.stat().st_size, file_crc32(path)):
            raise DamagedGraphError(path, "does not match the manifest's size and checksum")
    except OSError as error:
        raise DamagedGraphError(path, error.strerror or "cannot be read") from error
    return VectorGraph.load(path, dim=dim, row_count=entry.row_count)


def prune(root: Path, *, keep: int = 2) -> list[str]:
    """Remove old generations: the current one stays, and the newest others up to `keep` in all.

    Leftovers of interrupted builds go too, unless a build is running. A process that serves a removed
    generation goes on: its files stay until it lets go of them. Returns the removed names.
    Raises: ValueError when keep is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep: must be at least 1, is {keep}")
    current = current_generation(root)
    others = [name for number in generation_numbers(root) if (name := generation_name(number)) != current]
    kept = keep - 1 if current is not None else keep
    removed = others[: max(0, len(others) - kept)]
    remove_generations(root, removed)
    if root.is_dir():
        try:
            with build_lock(root):
                remove_leftovers(root)
        except BuildInProgressError:
            pass
    return removed


def remove_generations(root: Path, names: Sequence[str]) -> list[str]:
    """Remove generations, the current one too where it is named; return those that this call has removed.

    CURRENT stays, so that no later generation gets a name again. A process that serves a removed generation
    goes on: its files stay until it lets go of them. Raises: OSError.
    """
    removed = []
    for name in names:
        # Renamed first: a removal that is interrupted must not leave half a generation by that name.
        trash = root / name.replace("gen-", "trash-")
        _remove_tree(trash)  # of a removal that was interrupted
        try:
            (root / name).rename(trash)
        except FileNotFoundError:  # another process was faster
            continue
        sync_directory(root)
        _remove_tree(trash)
        removed.append(name)
    return removed


def remove_leftovers(root: Path) -> None:
    """Remove what interrupted builds and prunes left; the caller holds the build lock."""
    for path in root.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            _remove_tree(path)


def _remove_tree(path: Path) -> None:
    """Remove a directory, whoever else is about to."""
    while path.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


@contextmanager
def build_lock(root: Path) -> Iterator[None]:
    """Hold the right to build under `root`, across processes; released when the process ends.

    Raises: BuildInProgressError.
    """
    with (root / LOCK_FILE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuildInProgressError(root) from error
        yield


def _segment_entry(path: Path, entry: dict[str, Any]) -> SegmentEntry:
    key = SegmentKey(**entry["key"])
    graph = None if entry["graph"] is None else GraphEntry(**entry["graph"])
    for file in (entry["file"], *(() if graph is None else (graph.file,))):
        if not _FILE.fullmatch(file):
            raise DamagedGenerationError(path, f"names a file outside its directory: {file!r}")
    return SegmentEntry(**{**entry, "key": key, "graph": graph})


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
