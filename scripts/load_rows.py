"""Rows of a file into the store, the way a server would store them.

A load that was interrupted is run again: each batch is one transaction, and of every batch the ids that are
stored already are looked up first, an index lookup each, before anything is computed for its rows.
"""

import argparse
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray
from sqlalchemy import Engine

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.row_files import RowBatch, RowFile, open_rows
from service import registry
from service.application import clock_ms
from service.categories import create_category
from service.coding import code_rows, normalise, to_stored
from service.config import Config
from service.convert import to_entry_values
from service.database import reading, writing
from service.errors import InvalidRequestError, NotFoundError
from service.keys import ENTRY_PATTERN, NAME_PATTERN, check_id
from service.records import CacheRecord, Coding, ModalitySpec, NewEntry
from service.row_import import import_rows, stored_names
from service.rows import read_cache, read_categories, read_weights
from service.spaces import find_space, modalities_of
from service.transaction import CacheTransaction

_MODALITY = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Rows of a file: stored ones, and ones whose id, or whose scope and text, was stored already.
    `ignored`: columns that mean nothing here."""

    stored_count: int
    skipped_count: int
    ignored: tuple[str, ...]


def check_file(arguments: argparse.Namespace, *, config: Config, progress: Progress) -> tuple[RowFile, int]:
    """Open a file of rows and read it to the end: nothing is stored unless every row is valid.

    Returns the file and how many rows it has. Raises: CommandError, naming the file and the row.
    """
    file = open_rows(arguments.input, rename=_renames(arguments.rename), texts=arguments.texts)
    check_id(arguments.category, NAME_PATTERN, field="--category")
    row_count = 0
    for batch in file.batches():
        _names(file, batch)
        _vectors(file, batch)
        _values(file, batch, arguments.category, max_response_bytes=config.server.max_response_bytes)
        row_count = batch.numbers.stop
        progress("check", row_count, file.row_count or row_count)
    return file, row_count


def load_file(
    engine: Engine,
    file: RowFile,
    arguments: argparse.Namespace,
    *,
    config: Config,
    progress: Progress,
    step: int = 1,
    may_create: bool = True,
) -> LoadReport:
    """Store every `step`-th row of a checked file, with codes where the cache has an active encoder.

    Raises:
        CommandError: the file changed meanwhile, or has other dimensions than the cache.
        NotFoundError: there is no such cache, and none may be created.
        InvalidRequestError: the cache cannot be created so.
    """
    cache, space = _require_cache(engine, arguments, dim=file.dim, may_create=may_create)
    encoder = None
    if cache.active_encoder_id is not None:
        with reading(engine) as connection:
            encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    stored = read = 0
    for batch in file.batches(step=step):
        rows = _new_rows(
            engine,
            cache,
            file,
            batch,
            arguments.category,
            max_response_bytes=config.server.max_response_bytes,
        )
        if rows:
            stored += _store(engine, cache, rows, encoder, space=space, embedder_id=arguments.embedder_id)
        read += len(batch)
        progress("load" if step == 1 else "load sample", batch.numbers.stop, file.row_count or read)
    return LoadReport(stored_count=stored, skipped_count=read - stored, ignored=file.ignored)


def _renames(pairs: Sequence[str]) -> dict[str, str]:
    renames = {}
    for pair in pairs:
        column, equals, name = pair.partition("=")
        if not equals or not column or not name:
            raise CommandError(f"--rename {pair!r}: must be COLUMN=NAME")
        renames[column] = name
    return renames


def _require_cache(
    engine: Engine, arguments: argparse.Namespace, *, dim: int, may_create: bool
) -> tuple[CacheRecord, str]:
    """The cache, created for the file's dimension where there is none, and the space of the file's rows."""
    with writing(engine) as connection:
        try:
            cache = read_cache(connection, arguments.cache)
        except NotFoundError:
            if not may_create:
                raise
            cache = registry.create_cache(
                connection,
                check_id(arguments.cache, NAME_PATTERN, field="--cache"),
                modalities={_MODALITY: ModalitySpec(dim=dim, embedder_id=arguments.embedder_id)},
                code_bits=arguments.code_bits,
                label_bits=arguments.label_bits,
                description=f"from {arguments.input.name}",
                now_ms=clock_ms(),
            )
    if _MODALITY not in modalities_of(cache):
        raise CommandError(
            f"{arguments.input} has {dim} dimensions, cache {cache.name} has no {_MODALITY} modality"
        )
    space = find_space(cache, _MODALITY, arguments.embedder_id)
    expected = cache.modalities[space]
    if expected.dim != dim:
        raise CommandError(
            f"{arguments.input} has {dim} dimensions, cache {cache.name} has {expected.dim} dimensions"
        )
    return cache, space


def _new_rows(
    engine: Engine,
    cache: CacheRecord,
    file: RowFile,
    batch: RowBatch,
    category: str,
    *,
    max_response_bytes: int,
) -> list[tuple[str, dict[str, Any]]]:
    """Per row whose id is not stored: its category and what `NewEntry` takes. Raises: CommandError."""
    names = _names(file, batch)
    with reading(engine) as connection:
        known = stored_names(connection, cache.id, names, now_ms=clock_ms())
    if known.issuperset(names):
        return []
    rows = _values(file, batch, category, max_response_bytes=max_response_bytes)
    vectors = _vectors(file, batch)
    return [
        (own, {**values, "name": name, "vector": vector})
        for name, vector, (own, values) in zip(names, vectors, rows, strict=True)
        if name not in known
    ]


def _names(file: RowFile, batch: RowBatch) -> list[str]:
    """The rows' ids, made of their numbers where they bring none. Raises: CommandError naming the row."""
    ids = batch.columns.get("id")
    if ids is None:
        return [f"{file.id_prefix}-{number}" for number in batch.numbers]
    pairs = zip(batch.numbers, ids, strict=True)
    names = [f"{file.id_prefix}-{number}" if own is None else str(own) for number, own in pairs]
    for number, name in zip(batch.numbers, names, strict=True):
        if not ENTRY_PATTERN.fullmatch(name):
            with _named(file, number):
                check_id(name, ENTRY_PATTERN, field="id")
    return names


def _values(
    file: RowFile, batch: RowBatch, category: str, *, max_response_bytes: int
) -> list[tuple[str, dict[str, Any]]]:
    """Per row its category and what `NewEntry` takes of its columns; the dicts are shared between rows.

    Raises: CommandError naming the row.
    """
    # Most rows of a large file have no columns, or the same in few of them: each distinct row is read once.
    known: dict[Hashable, tuple[str, dict[str, Any]]] = {}
    others = {name: column for name, column in batch.columns.items() if name != "id"}
    rows = []
    for i, number in enumerate(batch.numbers):
        columns = {name: column[i] for name, column in others.items() if column[i] is not None}
        is_plain = all(isinstance(value, str | bytes) for value in columns.values())
        key = tuple(columns.items()) if is_plain else number
        if key not in known:
            with _named(file, number):
                own = check_id(str(columns.get("category", category)), NAME_PATTERN, field="category")
                known[key] = own, to_entry_values(_message(columns), max_response_bytes=max_response_bytes)
        rows.append(known[key])
    return rows


@contextmanager
def _named(file: RowFile, number: int) -> Iterator[None]:
    """Name the row in what is raised. Raises: CommandError for an InvalidRequestError."""
    try:
        yield
    except InvalidRequestError as error:
        raise CommandError(f"{file.path}: row {number}: {error.message}") from error


def _vectors(file: RowFile, batch: RowBatch) -> NDArray[np.float16]:
    try:
        return to_stored(normalise(batch.embeddings))
    except InvalidRequestError as error:
        for i in range(len(batch)):
            try:
                normalise(batch.embeddings[i : i + 1])
            except InvalidRequestError:
                raise CommandError(f"{file.path}: row {batch.numbers[i]}: {error.message}") from error
        raise


def _message(columns: Mapping[str, Any]) -> pb.Entry:
    """The row as a caller of the service would send it. Raises: InvalidRequestError."""
    response = columns.get("response", b"")
    try:
        return pb.Entry(
            text=str(columns.get("text", "")),
            response=response if isinstance(response, bytes) else str(response).encode(),
            labels=_terms(columns, "labels"),
            tags=_terms(columns, "tags"),
            source=str(columns.get("source", "")),
            scope=str(columns.get("scope", "")),
            cost=_number(columns, "cost"),
            model=str(columns.get("model", "")),
        )
    except UnicodeEncodeError as error:  # half a surrogate pair, as JSON can carry
        raise InvalidRequestError(f"no valid Unicode text: {error}", reason="INVALID_VALUE") from error


def _number(columns: Mapping[str, Any], name: str) -> float:
    value = columns.get(name, 0.0)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(
            f"{name}: {value!r} is no number", reason="INVALID_VALUE", field=name
        ) from error


def _terms(columns: Mapping[str, Any], name: str) -> list[str]:
    value = columns.get(name, "")
    if value == "":
        return []
    terms = value if isinstance(value, list | tuple) else [value]
    if any(term is None for term in terms):
        raise InvalidRequestError(f"{name}: a value is null", reason="INVALID_VALUE", field=name)
    return [str(term) for term in terms]


def _store(
    engine: Engine,
    cache: CacheRecord,
    rows: Sequence[tuple[str, dict[str, Any]]],
    encoder: Encoder | None,
    *,
    space: str,
    embedder_id: str,
) -> int:
    """How many were stored."""
    codings = _codings(rows, encoder, space=space)
    with writing(engine) as connection:
        now_ms = clock_ms()
        known = {category.name: category.id for category in read_categories(connection, cache.id)}
        for name in sorted({category for category, _ in rows} - set(known)):
            created = create_category(connection, cache.name, name, own={}, now_ms=now_ms)
            known[name] = created.id
        tx = CacheTransaction.lock(connection, cache.id, now_ms=now_ms)
        return import_rows(
            tx,
            [
                NewEntry(
                    category_id=known[category],
                    modality=space,
                    embedder_id=embedder_id,
                    coding=coding,
                    code_bytes=cache.code_bits // 8,
                    **values,
                )
                for (category, values), coding in zip(rows, codings, strict=True)
            ],
        )


def _codings(
    rows: Sequence[tuple[str, dict[str, Any]]], encoder: Encoder | None, *, space: str
) -> Sequence[Coding | None]:
    if encoder is None or space not in encoder.modalities:
        return [None] * len(rows)
    vectors = np.stack([values["vector"] for _, values in rows])
    return code_rows(encoder, vectors, modality=space, labels=[values["labels"] for _, values in rows])
