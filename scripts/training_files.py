"""What to train on, out of files: rows of one or more modalities, labels, items, labelled pairs, texts."""

import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.pair_files import read_pair_lines, read_text_pairs
from scripts.row_files import open_rows
from service.coding import normalise
from service.config import EmbedderConfig
from service.embedder import EMBED_SECONDS, Embedder, EmbedderSpec, patient
from service.embedding import Input, check_input
from service.errors import InvalidRequestError
from service.records import CacheRecord
from service.spaces import current_space

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


def read_pairs(
    path: Path, *, rows: TrainingRows | None, embedder: EmbedderConfig, cache: CacheRecord | None = None
) -> LabelledPairs:
    """Read labelled pairs.

    An .npz of `pairs` [p, 3] and, unless `rows` are given, `embeddings`; an .npy of pairs; or a .jsonl of
    objects {"a", "b", "label"} whose a and b are ids of `rows`, or without rows texts, which are embedded
    as lookups of `cache` are.
    Raises: CommandError; InvalidRequestError for an embedder that is not the cache's.
    """
    if path.suffix == ".jsonl" and rows is None:
        named = read_text_pairs(path)
        unit = normalise(embed_texts(named.texts, embedder=embedder, cache=cache))
        return LabelledPairs(named.pairs, TrainingRows(unit, None, None, named.texts))
    if path.suffix == ".jsonl":
        assert rows is not None
        return LabelledPairs(_pairs_of_ids(path, rows), rows)
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


def embed_texts(
    texts: Sequence[str],
    *,
    embedder: EmbedderConfig,
    cache: CacheRecord | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Embed texts to float32 [n, dim] by the configured embedder, which nobody waits for as a lookup does.

    Raises: CommandError where none is configured; EmbedderUnavailableError; InvalidRequestError where it is
    not that of the cache.
    """
    if not embedder.model:
        raise CommandError("no [embedder] model is configured to embed the texts by")
    started = Embedder(patient(embedder))
    try:
        made = started.start()
        if cache is not None:
            _check_current(cache, made)
        parts = []
        for start in range(0, len(texts), embedder.max_texts):
            batch = texts[start : start + embedder.max_texts]
            parts.append(started.embed(batch, timeout_seconds=EMBED_SECONDS))
            if progress is not None:
                progress("embed", start + len(batch), len(texts))
        return np.concatenate(parts)
    finally:
        started.stop()


def _check_current(cache: CacheRecord, made: EmbedderSpec) -> None:
    """Raise InvalidRequestError unless the cache's embeddings are this embedder's."""
    source = Input(embedding=np.zeros(made.dim, np.float32), embedder_id=made.embedder_id)
    space = current_space(cache, source.modality)
    if check_input(cache, source) != space:
        raise InvalidRequestError(
            f"the cache's embeddings are of {cache.modalities[space].embedder_id!r} until those of "
            f"{made.embedder_id!r} take their place: `nearhit migrate-embedder --finish`",
            reason="EMBEDDER_MISMATCH",
        )


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


def _pairs_of_ids(path: Path, rows: TrainingRows) -> NDArray[np.int64]:
    """Pairs [p, 3] of a .jsonl that names rows by id, or by number where they have none."""
    names = rows.ids if rows.ids is not None else [str(row) for row in range(len(rows.embeddings))]
    position = {name: row for row, name in enumerate(names)}
    counts = Counter(names)
    pairs = []
    for place, *sides, label in read_pair_lines(path):
        for name in map(str, sides):
            if counts[name] != 1:
                found = "there is not" if name not in position else f"there is {counts[name]} times"
                raise CommandError(f"{place}: refers to row {name!r}, which {found}")
        pairs.append((position[str(sides[0])], position[str(sides[1])], label))
    return np.array(pairs, dtype=np.int64)
