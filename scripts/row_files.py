"""Files of rows: .npy, .npz, .jsonl, .parquet, a batch at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError

BATCH_ROWS = 2_000
COLUMNS = ("id", "category", "text", "response", "labels", "tags", "source", "scope")
_EMBEDDING_NAMES = ("embeddings", "embedding", "vectors")


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows `start` and following: embeddings float32 [n, dim] and the columns that the file has."""

    start: int
    embeddings: NDArray[np.float32]
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, slots=True)
class RowFile:
    """An open file of rows; `ignored` are columns that mean nothing here."""

    path: Path
    row_count: int | None
    dim: int
    ignored: tuple[str, ...]
    _batches: Iterator[RowBatch]

    def batches(self) -> Iterator[RowBatch]:
        """The rows, once."""
        return self._batches


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
    lines = None if texts is None else texts.read_text(encoding="utf-8").splitlines()
    try:
        return reader(path, rename or {}, lines)
    except (ValueError, OSError, EOFError) as error:
        raise CommandError(f"{path}: {error}") from error


def _open_npy(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    return _from_arrays(path, {"embeddings": np.load(path, mmap_mode="r", allow_pickle=False)}, rename, lines)


def _open_npz(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    with np.load(path, allow_pickle=False) as archive:
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
        name: array.tolist() for name, array in named.items() if name in COLUMNS
    }
    if lines is not None:
        columns["text"] = lines
    for name, column in columns.items():
        if len(column) != len(embeddings):
            raise CommandError(f"{path}: {len(column)} values of {name} for {len(embeddings)} embeddings")

    def batches() -> Iterator[RowBatch]:
        for start in range(0, len(embeddings), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            part = {name: column[rows] for name, column in columns.items()}
            yield RowBatch(start, np.asarray(embeddings[rows], dtype=np.float32), part)

    ignored = tuple(sorted(set(named) - set(COLUMNS)))
    return RowFile(path, len(embeddings), int(embeddings.shape[1]), ignored, batches())


def _open_jsonl(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    def records() -> Iterator[dict[str, Any]]:
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

    return _from_records(path, records(), None, rename, lines)


def _open_parquet(path: Path, rename: Mapping[str, str], lines: list[str] | None) -> RowFile:
    try:
        parquet = import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise CommandError("reading .parquet needs pyarrow: pip install '.[train]'") from error
    file = parquet.ParquetFile(path)

    def records() -> Iterator[dict[str, Any]]:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield from batch.to_pylist()

    return _from_records(path, records(), file.metadata.num_rows, rename, lines)


def _from_records(
    path: Path,
    records: Iterator[dict[str, Any]],
    row_count: int | None,
    rename: Mapping[str, str],
    lines: list[str] | None,
) -> RowFile:
    first = next(records, None)
    if first is None:
        raise CommandError(f"{path}: no rows")
    named = {rename.get(name, name) for name in first}
    key = next((name for name in _EMBEDDING_NAMES if name in named), None)
    if key is None:
        raise CommandError(f"{path}: the first row has no `embedding`, it has {', '.join(sorted(first))}")

    def batches() -> Iterator[RowBatch]:
        pending: list[dict[str, Any]] = []
        start = 0
        for record in _chained(first, records):
            pending.append({rename.get(name, name): value for name, value in record.items()})
            if len(pending) == BATCH_ROWS:
                yield _batch_of(path, pending, start, key, lines)
                start += len(pending)
                pending = []
        if pending:
            yield _batch_of(path, pending, start, key, lines)

    named.discard(key)
    embedding = {rename.get(name, name): value for name, value in first.items()}[key]
    return RowFile(path, row_count, len(embedding), tuple(sorted(named - set(COLUMNS))), batches())


def _chained(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _batch_of(
    path: Path, records: Sequence[dict[str, Any]], start: int, key: str, lines: list[str] | None
) -> RowBatch:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS if any(name in row for row in records)}
    for row in records:
        for name, values in columns.items():
            values.append(row.get(name))
    if lines is not None:
        columns["text"] = lines[start : start + len(records)]
    try:
        embeddings = np.array([row[key] for row in records], dtype=np.float32)
    except (KeyError, ValueError, TypeError) as error:
        raise CommandError(
            f"{path}: rows {start} to {start + len(records) - 1}: no embeddings of one length"
        ) from error
    return RowBatch(start, embeddings, columns)
