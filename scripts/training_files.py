"""What to train on, out of files: rows of one or more modalities, labels, items, labelled pairs, texts."""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.row_files import open_rows
from service.coding import normalise
from service.config import EmbedderConfig
from service.embedder import Embedder
from service.errors import EmbedderUnavailableError, InvalidRequestError

MAX_FILE_ROWS = 2_000_000
"""Rows of one file that are held in memory as float32."""

_UNREADABLE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRows:
    """Rows of one modality. embeddings: float32 [n, dim], L2-normalised. ids: of each row, None for one
    without; labels: of each row, () for one without; texts: of each row. None where the file has none."""

    embeddings: NDArray[np.float32]
    ids: list[str | None] | None
    labels: list[tuple[str, ...]] | None
    texts: list[str] | None


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPairs:
    """Pairs int64 [p, 3] of row, row, 1 or 0, and the rows that they refer to."""

    pairs: NDArray[np.int64]
    rows: TrainingRows


def read_rows(path: Path, *, texts: Path | None = None) -> TrainingRows:
    """Read .npy, .npz, .jsonl or .parquet whole. Raises: CommandError, naming the file and what is wrong."""
    file = open_rows(path, texts=texts)
    parts: list[NDArray[np.float32]] = []
    columns: dict[str, list[Any]] = {}
    count = 0
    for batch in file.batches():
        parts.append(_normalised(path, batch.embeddings, numbers=batch.numbers))
        for name in ("id", "labels", "text"):
            own = batch.columns.get(name)
            if own is not None or name in columns:
                before = columns.setdefault(name, [None] * count)
                before.extend([None] * len(batch) if own is None else own)
        count += len(batch)
        if count > MAX_FILE_ROWS:
            raise CommandError(f"{path}: over {MAX_FILE_ROWS} rows, more than are held in memory")
    if not parts:
        raise CommandError(f"{path}: no rows")
    ids, labels, lines = columns.get("id"), columns.get("labels"), columns.get("text")
    return TrainingRows(
        embeddings=np.concatenate(parts),
        ids=None if ids is None else [None if own is None else str(own) for own in ids],
        labels=None if labels is None else [_labels(own) for own in labels],
        texts=None if lines is None else ["" if own is None else str(own) for own in lines],
    )


def read_pairs(path: Path, *, rows: TrainingRows | None, embedder: EmbedderConfig) -> LabelledPairs:
    """Read labelled pairs.

    An .npz of `pairs` [p, 3] and, unless `rows` are given, `embeddings`; an .npy of pairs; or a .jsonl of
    objects {"a", "b", "label"} whose a and b are ids of `rows`, or without rows texts, which are embedded.
    Raises: CommandError.
    """
    if path.suffix == ".jsonl":
        return _read_named_pairs(path, rows=rows, embedder=embedder)
    try:
        with path.open("rb") as file:  # numpy leaves a file open whose archive is damaged
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                pairs, embeddings = loaded, None
            else:
                pairs = loaded["pairs"]
                embeddings = loaded["embeddings"] if rows is None and "embeddings" in loaded else None
    except _UNREADABLE as error:
        raise CommandError(f"{path}: no .npz of embeddings and pairs, nor .npy of pairs: {error}") from error
    if rows is None:
        if embeddings is None:
            raise CommandError(f"{path}: pairs alone; name the file of their rows with --data")
        rows = _rows_of(path, embeddings)
    if pairs.ndim != 2 or pairs.shape[1] != 3 or pairs.dtype.kind not in "iu":
        raise CommandError(
            f"{path}: pairs must be integers [pairs, 3] of row, row, label;"
            f" got {pairs.dtype}{list(pairs.shape)}"
        )
    return LabelledPairs(pairs.astype(np.int64), rows)


def item_numbers(rows: Mapping[str, TrainingRows]) -> dict[str, NDArray[np.int64]]:
    """Return for each modality the item of each row: by id where all files have ids, else by row number.

    A row without id in a file of ids is an item by itself.

    Raises: CommandError where a file has no ids and the counts of rows differ.
    """
    if all(own.ids is not None for own in rows.values()):
        numbers: dict[str | tuple[str, int], int] = {}
        items = {}
        for modality, own in rows.items():
            names = [(modality, row) if name is None else name for row, name in enumerate(own.ids or ())]
            items[modality] = np.array(
                [numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64
            )
        return items
    counts = {modality: own.embeddings.shape[0] for modality, own in rows.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{modality} {count}" for modality, count in counts.items())
        raise CommandError(
            f"files of unequal length ({found}) need an `id` a row, equal for rows of one item"
        )
    return {modality: np.arange(count) for modality, count in counts.items()}


def embed_texts(texts: Sequence[str], *, embedder: EmbedderConfig) -> NDArray[np.float32]:
    """Embed texts to float32 [n, dim] by the configured embedder. Raises: CommandError."""
    if not embedder.model:
        raise CommandError("texts need an embedder: set [embedder] model in the configuration")
    started = Embedder(embedder)
    try:
        started.start()
        parts = []
        for start in range(0, len(texts), embedder.max_texts):
            part = texts[start : start + embedder.max_texts]
            parts.append(started.embed(part, timeout_seconds=embedder.max_wait_seconds))
        return np.concatenate(parts)
    except EmbedderUnavailableError as error:
        raise CommandError(f"the texts cannot be embedded: {error.message}") from error
    finally:
        started.stop()


def _normalised(
    path: Path, embeddings: NDArray[np.float32], *, numbers: Sequence[int]
) -> NDArray[np.float32]:
    """Rows at length 1. Raises: CommandError that names the first that has no direction by its number."""
    try:
        return normalise(embeddings)
    except InvalidRequestError:
        for number, row in zip(numbers, embeddings, strict=True):
            try:
                normalise(row[None])
            except InvalidRequestError as error:
                raise CommandError(f"{path}: row {number}: {error.message}") from error
        raise


def _labels(value: Any) -> tuple[str, ...]:
    """The labels of one row: None, a label, or a list of labels."""
    if value is None or value == "":
        return ()
    terms = value if isinstance(value, list | tuple) else [value]
    return tuple(str(term) for term in terms if term is not None)


def _rows_of(path: Path, embeddings: NDArray[Any]) -> TrainingRows:
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise CommandError(
            f"{path}: embeddings must be floats [n, dim], got {embeddings.dtype}{list(embeddings.shape)}"
        )
    unit = _normalised(path, embeddings.astype(np.float32), numbers=range(len(embeddings)))
    return TrainingRows(unit, None, None, None)


def _read_named_pairs(path: Path, *, rows: TrainingRows | None, embedder: EmbedderConfig) -> LabelledPairs:
    names: list[str | None]
    sides: list[tuple[str, str]] = []
    labels: list[int] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028, which JSON may hold as it is
    except _UNREADABLE as error:
        raise CommandError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            first, second, label = record["a"], record["b"], record["label"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{path}: line {number} is no object with a, b and label") from error
        if label not in (0, 1):
            raise CommandError(f"{path}: line {number}: label is {label!r}, expected 1 (similar) or 0")
        if first is None or second is None:
            raise CommandError(f"{path}: line {number}: a and b must name rows or be texts, not null")
        sides.append((str(first), str(second)))
        labels.append(int(label))
    if not sides:
        raise CommandError(f"{path}: no pairs")
    if rows is None:
        texts = list(dict.fromkeys(name for pair in sides for name in pair))
        embeddings = embed_texts(texts, embedder=embedder)
        rows, names = TrainingRows(normalise(embeddings), None, None, texts), [*texts]
    else:
        names = rows.ids if rows.ids is not None else [str(row) for row in range(len(rows.embeddings))]
    place = {name: row for row, name in enumerate(names)}
    counts = Counter(names)
    for number, pair in enumerate(sides):
        for name in pair:
            if counts[name] != 1:
                found = "there is not" if name not in place else f"there is {counts[name]} times"
                raise CommandError(f"{path}: pair {number} refers to row {name!r}, which {found}")
    pairs = [
        (place[first], place[second], label) for (first, second), label in zip(sides, labels, strict=True)
    ]
    return LabelledPairs(np.array(pairs, dtype=np.int64), rows)
