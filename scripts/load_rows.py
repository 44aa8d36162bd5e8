"""Rows of a file into the store, the way a server would store them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray
from sqlalchemy import Engine

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from scripts.arguments import CommandError, ProgressBars
from scripts.row_files import RowBatch, RowFile, open_rows
from service import registry
from service.application import clock_ms
from service.coding import code_rows, normalise, to_stored
from service.config import Config
from service.convert import to_entry_values
from service.database import reading, writing
from service.errors import InvalidRequestError, NotFoundError
from service.keys import ENTRY_PATTERN, NAME_PATTERN, check_id
from service.records import CacheRecord, Coding, ModalitySpec, NewEntry, Policy
from service.rows import read_cache, read_categories, read_weights
from service.store import import_entries
from service.transaction import CacheTransaction

_MODALITY = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Rows of a file: stored ones, and ones whose id, or whose scope and text, was stored already.
    `ignored`: columns that mean nothing here."""

    stored_count: int
    skipped_count: int
    ignored: tuple[str, ...]


def load_file(
    engine: Engine, arguments: argparse.Namespace, *, config: Config, progress: ProgressBars
) -> LoadReport:
    """Store a file's rows. The file is read twice: nothing is stored unless every row is valid.

    Raises:
        CommandError: the file, or a row of it, is not valid.
        InvalidRequestError: the cache cannot be created so.
    """
    file = open_rows(arguments.input, rename=_renames(arguments.rename), texts=arguments.texts)
    check_id(arguments.category, NAME_PATTERN, field="--category")
    most_bytes = config.server.max_response_bytes
    for batch in file.batches():
        _entries(file, batch, arguments.category, max_response_bytes=most_bytes)
        progress("check", batch.start + len(batch), file.row_count or batch.start + len(batch))
    cache = _require_cache(engine, arguments, dim=file.dim)
    encoder = None
    if cache.active_encoder_id is not None:
        with reading(engine) as connection:
            encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    stored = read = 0
    for batch in file.batches():
        rows = _entries(file, batch, arguments.category, max_response_bytes=most_bytes)
        stored, read = stored + _store(engine, cache, rows, encoder), batch.start + len(batch)
        progress("load", read, file.row_count or read)
    return LoadReport(stored_count=stored, skipped_count=read - stored, ignored=file.ignored)


def _renames(pairs: Sequence[str]) -> dict[str, str]:
    renames = {}
    for pair in pairs:
        column, equals, name = pair.partition("=")
        if not equals or not column or not name:
            raise CommandError(f"--rename {pair!r}: must be COLUMN=NAME")
        renames[column] = name
    return renames


def _require_cache(engine: Engine, arguments: argparse.Namespace, *, dim: int) -> CacheRecord:
    """The cache, created for the file's dimension where there is none."""
    with writing(engine) as connection:
        try:
            cache = read_cache(connection, arguments.cache)
        except NotFoundError:
            cache = registry.create_cache(
                connection,
                check_id(arguments.cache, NAME_PATTERN, field="--cache"),
                modalities={_MODALITY: ModalitySpec(dim=dim, embedder_id=arguments.embedder_id)},
                code_bits=arguments.code_bits,
                label_bits=arguments.label_bits,
                description=f"from {arguments.input.name}",
                now_ms=clock_ms(),
            )
    expected = cache.modalities.get(_MODALITY)
    if expected is None or expected.dim != dim:
        has = "no text modality" if expected is None else f"{expected.dim} dimensions"
        raise CommandError(f"{arguments.input} has {dim} dimensions, cache {cache.name} has {has}")
    return cache


def _entries(
    file: RowFile, batch: RowBatch, category: str, *, max_response_bytes: int
) -> list[tuple[str, dict[str, Any]]]:
    """Per row its category and what `NewEntry` takes. Raises: CommandError naming the row."""
    vectors = _vectors(file, batch)
    rows = []
    for i, vector in enumerate(vectors):
        columns = {name: column[i] for name, column in batch.columns.items() if column[i] is not None}
        try:
            name = check_id(str(columns.get("id", f"row-{batch.start + i}")), ENTRY_PATTERN, field="id")
            own = check_id(str(columns.get("category", category)), NAME_PATTERN, field="category")
            values = to_entry_values(_message(columns), max_response_bytes=max_response_bytes)
        except InvalidRequestError as error:
            raise CommandError(f"{file.path}: row {batch.start + i}: {error.message}") from error
        rows.append((own, {**values, "name": name, "vector": vector}))
    return rows


def _vectors(file: RowFile, batch: RowBatch) -> NDArray[np.float16]:
    try:
        return to_stored(normalise(batch.embeddings))
    except InvalidRequestError as error:
        for i in range(len(batch)):
            try:
                normalise(batch.embeddings[i : i + 1])
            except InvalidRequestError:
                raise CommandError(f"{file.path}: row {batch.start + i}: {error.message}") from error
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
        )
    except UnicodeEncodeError as error:  # half a surrogate pair, as JSON can carry
        raise InvalidRequestError(f"no valid Unicode text: {error}", reason="INVALID_VALUE") from error


def _terms(columns: Mapping[str, Any], name: str) -> list[str]:
    value = columns.get(name, "")
    if value == "":
        return []
    terms = value if isinstance(value, list | tuple) else [value]
    if any(term is None for term in terms):
        raise InvalidRequestError(f"{name}: a value is null", reason="INVALID_VALUE", field=name)
    return [str(term) for term in terms]


def _store(
    engine: Engine, cache: CacheRecord, rows: Sequence[tuple[str, dict[str, Any]]], encoder: Encoder | None
) -> int:
    """How many were stored."""
    codings = _codings(rows, encoder)
    with writing(engine) as connection:
        now_ms = clock_ms()
        known = {category.name: category.id for category in read_categories(connection, cache.id)}
        for name in sorted({category for category, _ in rows} - set(known)):
            created = registry.create_category(connection, cache.name, name, policy=Policy(), now_ms=now_ms)
            known[name] = created.id
        tx = CacheTransaction.lock(connection, cache.id, now_ms=now_ms)
        return import_entries(
            tx,
            [
                NewEntry(
                    category_id=known[category],
                    modality=_MODALITY,
                    embedder_id=cache.modalities[_MODALITY].embedder_id,
                    coding=coding,
                    code_bytes=cache.code_bits // 8,
                    **values,
                )
                for (category, values), coding in zip(rows, codings, strict=True)
            ],
        )


def _codings(rows: Sequence[tuple[str, dict[str, Any]]], encoder: Encoder | None) -> Sequence[Coding | None]:
    if encoder is None or _MODALITY not in encoder.modalities:
        return [None] * len(rows)
    vectors = np.stack([values["vector"] for _, values in rows])
    return code_rows(encoder, vectors, modality=_MODALITY, labels=[values["labels"] for _, values in rows])
