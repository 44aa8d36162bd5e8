"""Rows of a file into the store, the way a server would store them."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Engine

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from scripts.arguments import CommandError, ProgressBars
from scripts.row_files import RowBatch, RowFile, open_rows
from service import registry
from service.application import clock_ms
from service.coding import code_rows, normalise, to_stored
from service.database import reading, writing
from service.errors import InvalidRequestError, NotFoundError
from service.keys import ENTRY_PATTERN, NAME_PATTERN, check_id, normalise_text
from service.records import CacheRecord, Coding, ModalitySpec, NewEntry, Policy
from service.rows import read_cache, read_categories, read_weights
from service.store import import_entries
from service.transaction import CacheTransaction

_MODALITY = "text"


def load_file(engine: Engine, arguments: argparse.Namespace, *, progress: ProgressBars) -> int:
    """Store a file's rows; return how many were new. Raises: CommandError, InvalidRequestError."""
    file = open_rows(arguments.input, rename=_renames(arguments.rename), texts=arguments.texts)
    cache = _require_cache(engine, arguments, dim=file.dim)
    encoder = None
    if cache.active_encoder_id is not None:
        with reading(engine) as connection:
            encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    stored = 0
    for batch in file.batches():
        stored += _store(engine, cache, _entries(file, batch, arguments.category), encoder)
        total = file.row_count if file.row_count is not None else batch.start + len(batch)
        progress("load", batch.start + len(batch), total)
    return stored


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


def _entries(file: RowFile, batch: RowBatch, category: str) -> list[tuple[str, dict[str, Any]]]:
    """Per row its category and what `NewEntry` takes."""
    try:
        vectors = to_stored(normalise(batch.embeddings))
    except InvalidRequestError as error:
        for i in range(len(batch)):
            try:
                normalise(batch.embeddings[i : i + 1])
            except InvalidRequestError:
                raise CommandError(f"{file.path}: row {batch.start + i}: {error.message}") from error
        raise
    rows = []
    for i, vector in enumerate(vectors):
        columns = {name: column[i] for name, column in batch.columns.items()}
        name = str(_given(columns, "id", f"row-{batch.start + i}"))
        text = str(_given(columns, "text", ""))
        response = _given(columns, "response", "")
        rows.append(
            (
                check_id(str(_given(columns, "category", category)), NAME_PATTERN, field="category"),
                {
                    "name": check_id(name, ENTRY_PATTERN, field="id"),
                    "text": text,
                    "fingerprint": normalise_text(text) or None,
                    "response": response if isinstance(response, bytes) else str(response).encode(),
                    "labels": _terms(columns, "labels"),
                    "tags": _terms(columns, "tags"),
                    "source": str(_given(columns, "source", "")),
                    "scope": str(_given(columns, "scope", "")),
                    "vector": vector,
                },
            )
        )
    return rows


def _given(columns: Mapping[str, Any], name: str, default: Any) -> Any:
    value = columns.get(name)
    return default if value is None else value


def _terms(columns: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = columns.get(name)
    if value is None or value == "":
        return ()
    return tuple(str(term) for term in value) if isinstance(value, list | tuple) else (str(value),)


def _store(
    engine: Engine, cache: CacheRecord, rows: Sequence[tuple[str, dict[str, Any]]], encoder: Encoder | None
) -> int:
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
