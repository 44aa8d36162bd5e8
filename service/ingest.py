"""Stores: validated entries become vectors and codes, then rows through the writer."""

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.admission import admit
from service.application import Application
from service.coding import code_rows, to_stored
from service.convert import StoreItem
from service.embedding import Input, embed_inputs
from service.judging import compare_responses
from service.records import Coding, NewEntry, StoredEntry
from service.replica import CacheReplica, CacheState
from service.store import import_entries, store_entries
from service.tokens import read_token
from service.transaction import CacheTransaction


def submit_stores(
    app: Application, replica: CacheReplica, items: Sequence[StoreItem], *, timeout_seconds: float
) -> "tuple[list[NewEntry], Future[list[StoredEntry]]]":
    """Queue entries of one cache; all that their categories admit are stored, or none.

    Raises:
        NotFoundError, InvalidRequestError: one of them is wrong; none is queued.
        EmbedderUnavailableError: one has only a text, and it cannot be embedded.
        OverloadedError: the queue is full.
    """
    key = replica.state.record.token_key
    tokens = [read_token(item.lookup_token, key) if item.lookup_token else None for item in items]
    rows = new_entries(app, replica, items, timeout_seconds=timeout_seconds)
    admitted = partial(admit, sightings=app.sightings)

    def apply(tx: CacheTransaction) -> list[StoredEntry]:
        if any(tokens):
            compare_responses(tx, list(zip(tokens, rows, strict=True)))
        return store_entries(tx, rows, admit=admitted)

    return rows, app.writer.submit(replica.state.record.id, apply, row_count=len(rows))


def submit_imports(
    app: Application, replica: CacheReplica, items: Sequence[StoreItem], *, timeout_seconds: float
) -> "Future[int]":
    """Queue entries whose ids may exist; the answer counts those stored. Raises: as submit_stores."""
    rows = new_entries(app, replica, items, timeout_seconds=timeout_seconds)
    cache_id = replica.state.record.id
    return app.writer.submit(cache_id, lambda tx: import_entries(tx, rows), row_count=len(rows))


def new_entries(
    app: Application, replica: CacheReplica, items: Sequence[StoreItem], *, timeout_seconds: float
) -> list[NewEntry]:
    """The entries with their vectors and codes. Raises: as submit_stores."""
    state = replica.state
    category_ids = [state.category(item.category).id for item in items]
    embedded = embed_inputs(
        state.record,
        [item.source for item in items],
        embedder=app.embedder,
        timeout_seconds=timeout_seconds,
    )
    vectors = [to_stored(own.vector) for own in embedded]
    spaces = [own.space for own in embedded]
    codings = _code(state, items, vectors, spaces)
    return [
        NewEntry(
            category_id=category_id,
            modality=space,
            embedder_id=_embedder_id(app, state, item.source, space),
            vector=vector,
            code_bytes=state.record.code_bits // 8,
            coding=coding,
            **item.values,
        )
        for item, category_id, vector, space, coding in zip(
            items, category_ids, vectors, spaces, codings, strict=True
        )
    ]


def _code(
    state: CacheState,
    items: Sequence[StoreItem],
    vectors: Sequence[NDArray[np.float16]],
    spaces: Sequence[str],
) -> list[Coding | None]:
    """Codes by the active encoder, a space at a time; None where it has no tower for the space."""
    codings: list[Coding | None] = [None] * len(items)
    encoder = state.encoders.active
    if encoder is None:
        return codings
    for name, group in groupby(sorted(range(len(items)), key=spaces.__getitem__), key=spaces.__getitem__):
        rows = list(group)
        if name not in encoder.modalities:
            continue
        labels: list[Any] = [items[i].values["labels"] for i in rows]
        made = code_rows(encoder, np.stack([vectors[i] for i in rows]), modality=name, labels=labels)
        for i, coding in zip(rows, made, strict=True):
            codings[i] = coding
    return codings


def _embedder_id(app: Application, state: CacheState, source: Input, space: str) -> str:
    if source.embedding is None and app.embedder is not None and app.embedder.spec is not None:
        return app.embedder.spec.embedder_id
    return source.embedder_id or state.record.modalities[space].embedder_id
