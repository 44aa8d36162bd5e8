"""Files of rows: .npy, .npz, .jsonl, .parquet, a batch at a time."""

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError

BATCH_ROWS = 10_000  # also the rows of one transaction
COLUMNS = ("id", "category", "text", "response", "labels", "tags", "source", "scope", "cost", "model")
_EMBEDDING_NAMES = ("embeddings", "embedding", "vectors")
UNREADABLE = (
    ValueError,
    OverflowError,  # lengths that no machine has
    OSError,
    EOFError,
    RuntimeError,  # an encrypted archive, an unknown compression, JSON nested too deep
    struct.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of a file: their numbers, embeddings float32 [n, dim] and the columns that the file has."""

    numbers: range
    embeddings: NDArray[np.float32]
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows; `ignored` are columns that mean nothing here. Rows without an id are named after
    `id_prefix` and their number."""

    path: Path
    row_count: int | None
    dim: int
    ignored: tuple[str, ...]
    _read: Callable[[], Iterator[RowBatch]]
    id_prefix: str = "row"

    def batches(self, *, step: int = 1) -> Iterator[RowBatch]:
        """Every `step`-th row, from the first on at every call. Raises: CommandError."""
        try:
            for batch in self._read():
                part = batch if step == 1 else _every(batch, step)
                if len(part):
                    yield part
        except UNREADABLE as error:
            raise CommandError(f"{self.path}: {error}") from error


def open_rows(path: Path, *, rename: Mapping[str, str] | None = None, texts: Path | None = None) -> RowFile:
    """Open a file of rows.

    Args:
        rename: column in the file -> column as here.
        texts: a text file whose line i is the text of row i.

    Raises:
        CommandError: unreadable, of no known kind, without embeddings, or with columns of unequal length.
    """
    readers = {".npy": _open_npy, ".npz": _open_npz, ".jsonl": _open_jsonl, ".parquet": _open_parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise CommandError(f"{path}: not one of {', '.join(readers)}")
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    lines = None if texts is None else read_lines(texts)
    try:
        return reader(path, rename or {}, lines)
    except UNREADABLE as error:
        raise CommandError(f"{path}: {error}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file: only a line feed ends one, as texts may hold other separators.

    Raises: CommandError.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return [line.rstrip("\r\n") for line in lines]
    except (ValueError, OSError) as error:
        raise CommandError(f"{path}: {error}") from error


def _every(batch: RowBatch, step: int) -> RowBatch:
    """The rows of the batch whose number is a multiple of `step`."""
    rows = slice(-batch.numbers.start % step, None, step)
    columns = {name: column[rows] for name, column in batch.columns.items()}
    return RowBatch(batch.numbers[rows], batch.embeddings[rows], columns)


def _open_npy(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        raise CommandError(f"{path}: is no .npy file, but an archive")
    return _from_arrays(path, {"embeddings": loaded}, rename, lines)


def _open_npz(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    with path.open("rb") as file:  # numpy leaves a file open whose archive is damaged
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise CommandError(f"{path}: is no .npz archive, but one array")
        return _from_arrays(path, {name: archive[name] for name in archive.files}, rename, lines)


def _from_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], rename: Mapping[str, str], lines: list[str] | None
) -> RowFile:
    named = {rename.get(name, name): array for name, array in arrays.items()}
    key = next((name for name in _EMBEDDING_NAMES if name in named), None)
    if key is None or named[key].ndim != 2:
        raise CommandError(f"{path}: no two-dimensional array `embeddings`, it has {', '.join(arrays)}")
    embeddings = named.pop(key)
    columns: dict[str, Sequence[Any]] = {
        name: np.atleast_1d(array).tolist() for name, array in named.items() if name in COLUMNS
    }
    if "labels" in columns and named["labels"].ndim == 2:
        columns["labels"] = _label_names(path, named["labels"], named.pop("label_names", None))
    if lines is not None:
        columns["text"] = lines
    for name, column in columns.items():
        if len(column) != len(embeddings):
            raise CommandError(f"{path}: {len(column)} values of {name} for {len(embeddings)} embeddings")

    def batches() -> Iterator[RowBatch]:
        for start in range(0, len(embeddings), BATCH_ROWS):
            numbers = range(start, min(start + BATCH_ROWS, len(embeddings)))
            rows = slice(numbers.start, numbers.stop)
            part = {name: column[rows] for name, column in columns.items()}
            yield RowBatch(numbers, np.asarray(embeddings[rows], dtype=np.float32), part)

    ignored = tuple(sorted(set(named) - set(COLUMNS)))
    return RowFile(path, len(embeddings), int(embeddings.shape[1]), ignored, batches)


def _label_names(path: Path, indicators: NDArray[Any], names: NDArray[Any] | None) -> list[list[str]]:
    """The labels of each row of a 0/1 matrix [n, classes]; their names, or the numbers of the columns."""
    if not np.isin(indicators, (0, 1)).all():
        raise CommandError(f"{path}: a matrix of labels must hold 0 and 1 only")
    if names is None:
        names = np.arange(indicators.shape[1])
    if names.shape != (indicators.shape[1],):
        raise CommandError(f"{path}: {names.size} label_names for {indicators.shape[1]} columns of labels")
    return [[str(name) for name in names[own != 0]] for own in indicators]


def _open_jsonl(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    def records() -> Generator[dict[str, Any], None, None]:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise CommandError(f"{path}: line {number} is not JSON: {error}") from error
                if not isinstance(record, dict):
                    raise CommandError(f"{path}: line {number} is not an object")
                yield record

    return _from_records(path, records, None, rename, lines)


def _open_parquet(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    try:
        parquet = import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise CommandError("reading .parquet needs pyarrow: pip install '.[train]'") from error
    row_count = parquet.read_metadata(path).num_rows

    def records() -> Generator[dict[str, Any], None, None]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()

    return _from_records(path, records, row_count, rename, lines)


def _from_records(
    path: Path,
    records: Callable[[], Generator[dict[str, Any], None, None]],
    row_count: int | None,
    rename: Mapping[str, str],
    lines: list[str] | None,
) -> RowFile:
    with closing(records()) as opened:
        first = next(opened, None)
    if first is None:
        raise CommandError(f"{path}: no rows")
    named = {rename.get(name, name): value for name, value in first.items()}
    key = next((name for name in _EMBEDDING_NAMES if name in named), None)
    if key is None:
        raise CommandError(f"{path}: the first row has no `embedding`, it has {', '.join(sorted(first))}")
    embedding = named.pop(key)
    if not isinstance(embedding, list) or not embedding:
        raise CommandError(f"{path}: `{key}` of the first row is not a list of numbers")
    dim = len(embedding)

    def batches() -> Iterator[RowBatch]:
        pending: list[dict[str, Any]] = []
        start = 0
        for record in records():
            pending.append({rename.get(name, name): value for name, value in record.items()})
            if len(pending) == BATCH_ROWS:
                yield _batch_of(path, pending, start, lines, key=key, dim=dim)
                start += len(pending)
                pending = []
        if pending:
            yield _batch_of(path, pending, start, lines, key=key, dim=dim)
        if lines is not None and len(lines) != start + len(pending):
            raise CommandError(f"{path}: {len(lines)} values of text for {start + len(pending)} embeddings")

    return RowFile(path, row_count, dim, tuple(sorted(set(named) - set(COLUMNS))), batches)


def _batch_of(
    path: Path,
    records: Sequence[dict[str, Any]],
    start: int,
    lines: list[str] | None,
    *,
    key: str,
    dim: int,
) -> RowBatch:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS if any(name in row for row in records)}
    for row in records:
        for name, values in columns.items():
            values.append(row.get(name))
    if lines is not None:
        if len(lines) < start + len(records):
            raise CommandError(f"{path}: {len(lines)} values of text for more embeddings")
        columns["text"] = lines[start : start + len(records)]
    place = f"{path}: rows {start} to {start + len(records) - 1}"
    try:
        embeddings = np.array([row[key] for row in records], dtype=np.float32)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise CommandError(f"{place}: no embeddings of one length") from error
    if embeddings.shape != (len(records), dim):
        raise CommandError(f"{place}: no embeddings of one length: the first row has {dim} dimensions")
    return RowBatch(range(start, start + len(records)), embeddings, columns)
