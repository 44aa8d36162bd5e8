"""Plain vector search: the nearest entries, or the entries of the nearest classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from index.codes import pack
from index.errors import PathUnavailableError
from index.planner import SearchPath
from index.requests import Match, Partition, SearchRequest, SearchResult, ValueQuery
from service.database import reading
from service.embedder import Embedder
from service.embedding import Input, embed_inputs
from service.errors import InvalidRequestError, PreconditionError
from service.keys import scope_key
from service.payload import unpack_payload
from service.records import EntryRecord, Selection
from service.replica import CacheReplica, CacheState
from service.rows import read_entries_by_id
from service.store import select_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """One search. `categories` empty: all; `scope` None: any; `with_entries`: read them from the store.
    `min_recall`: share of the true nearest that is wanted, in [0, 1]; `by_label` takes no notice of it.
    `target_modality`: of the entries; empty: the query's own."""

    source: Input
    top_k: int = 10
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    scope: str | None = None
    path: SearchPath | None = None
    min_recall: float = 0.0
    by_label: bool = False
    target_modality: str = ""
    min_seq: int = 0
    with_entries: bool = False

    @property
    def target(self) -> str:
        """The modality of the entries."""
        return self.target_modality or self.source.modality

    @property
    def crosses(self) -> bool:
        """Whether the entries are of another modality than the query."""
        return self.target != self.source.modality


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAnswer:
    """The matches, nearest first, and their entries by row id where they were asked for."""

    state: CacheState
    result: SearchResult
    entries: Mapping[int, EntryRecord] | None = None

    def named_matches(self) -> Iterator[tuple[Match, str]]:
        """Matches with their entries' ids; ones deleted since are left out where entries were read."""
        for match in self.result.matches:
            if self.entries is None or match.entry_id in self.entries:
                yield match, unpack_payload(match.payload).entry


class _Search(NamedTuple):
    """One search and the rows that it is about; `vector`: float32 [dim], `allowed_ids`: int64 [m] or None."""

    query: SearchQuery
    vector: NDArray[np.float32]
    partitions: tuple[Partition, ...]
    allowed_ids: NDArray[np.int64] | None


class VectorSearch:
    """Searches over the replicas of this process."""

    def __init__(
        self,
        engine: Engine,
        *,
        embedder: Embedder | None,
        clock: Callable[[], int],
        min_seq_wait_seconds: float,
    ) -> None:
        self._engine = engine
        self._embedder = embedder
        self._clock = clock
        self._min_seq_wait_seconds = min_seq_wait_seconds

    def search(
        self, replica: CacheReplica, queries: Sequence[SearchQuery], *, timeout_seconds: float
    ) -> list[SearchAnswer]:
        """Answer searches of one cache; all of them against the same state.

        Raises:
            NotFoundError, InvalidRequestError: one of them is wrong; none is answered.
            PreconditionError: a path, label codes or queries between modalities that there are not.
            StoreUnavailableError: tags or entries were asked for and the database cannot be reached.
        """
        limit = self._min_seq_wait_seconds
        replica.wait_for(
            max(query.min_seq for query in queries),
            timeout_seconds=min(limit, timeout_seconds),
        )
        vectors = embed_inputs(
            replica.state.record,
            [query.source for query in queries],
            embedder=self._embedder,
            timeout_seconds=timeout_seconds,
        )
        # Embedding may have taken long: what is found is what is live and known now.
        state, now_ms = replica.state, self._clock()
        searches = [
            self._filtered(state, query, vector) for query, vector in zip(queries, vectors, strict=True)
        ]
        results = _search_all(state, searches, now_ms=now_ms)
        return [self._answer(state, query, result) for query, result in zip(queries, results, strict=True)]

    def _filtered(self, state: CacheState, query: SearchQuery, vector: NDArray[np.float32]) -> _Search:
        names = query.categories or tuple(state.categories)
        if query.target not in state.record.modalities:
            raise InvalidRequestError(
                f"the cache has no modality {query.target!r}, it has {', '.join(state.record.modalities)}",
                reason="UNKNOWN_MODALITY",
            )
        partitions = tuple((state.category(name).id, query.target) for name in names)
        return _Search(query, vector, partitions, self._tagged(state, query))

    def _answer(self, state: CacheState, query: SearchQuery, result: SearchResult) -> SearchAnswer:
        if not query.with_entries:
            return SearchAnswer(state=state, result=result)
        with reading(self._engine) as connection:
            found = read_entries_by_id(
                connection, state.record.id, [match.entry_id for match in result.matches]
            )
        return SearchAnswer(state=state, result=result, entries=found)

    def _tagged(self, state: CacheState, query: SearchQuery) -> NDArray[np.int64] | None:
        if not query.tags:
            return None
        with reading(self._engine) as connection:
            return np.array(
                select_rows(connection, state.record.id, Selection(tags=query.tags), live_at=0),
                dtype=np.int64,
            )


def _search_all(state: CacheState, searches: Sequence[_Search], *, now_ms: int) -> list[SearchResult]:
    """One result per search; those of instances that search the same rows share a pass over their codes.

    Raises: PreconditionError.
    """
    by_code = {
        i: (_search_labels if search.query.by_label else _search_across)(state, search, now_ms=now_ms)
        for i, search in enumerate(searches)
        if search.query.by_label or search.query.crosses
    }
    instances = [search for i, search in enumerate(searches) if i not in by_code]
    found = iter(_search_instances(state, instances, now_ms=now_ms))
    return [by_code[i] if i in by_code else next(found) for i in range(len(searches))]


def _search_labels(state: CacheState, search: _Search, *, now_ms: int) -> SearchResult:
    encoder = state.encoders.active
    modality = search.query.source.modality
    if encoder is None or modality not in encoder.label_modalities:
        raise PreconditionError(
            f"class retrieval needs an active encoder that has learned labels of modality {modality!r}",
            reason="NO_LABEL_CODES",
        )
    return state.index.search_labels(
        partitions=search.partitions,
        values=encoder.label_values(search.vector[None, :], modality=modality)[0],
        k=search.query.top_k,
        now_ms=now_ms,
        scope=_scope(search.query),
        allowed_ids=search.allowed_ids,
    )


def _search_across(state: CacheState, search: _Search, *, now_ms: int) -> SearchResult:
    """Entries of another modality by their codes: vectors of two modalities have no distance.

    Rows that have no code, or one of an encoder without queries from the one modality to the other, are not
    found. Raises: PreconditionError.
    """
    source, target = search.query.source.modality, search.query.target
    active = state.encoders.active
    if active is None or not active.can_cross(source, target=target):
        raise PreconditionError(
            f"a query of modality {source!r} finds entries of modality {target!r} only with an active "
            "encoder that was trained on both: nearhit train --crossmodal",
            reason="NO_CROSS_MODAL_ENCODER",
        )
    if search.query.path not in (None, SearchPath.SCAN):
        raise PreconditionError(
            f"between modalities codes are scanned: there is no path {search.query.path.name}",
            reason="PATH_UNAVAILABLE",
        )
    queries = {}
    for encoder_id in state.index.encoder_ids(search.partitions):
        encoder = state.encoders.query_encoder(encoder_id)
        if encoder is None or not encoder.can_cross(source, target=target):
            continue
        values = encoder.cross_values(search.vector[None, :], modality=source, target=target)
        bits = encoder.cross_bits(search.vector[None, :], modality=source, target=target)
        queries[encoder_id] = ValueQuery(
            values=values[0], code=pack(bits)[0], mask=pack(encoder.cross_mask[None, :])[0]
        )
    return state.index.search_values(
        partitions=search.partitions,
        queries=queries,
        k=search.query.top_k,
        now_ms=now_ms,
        scope=_scope(search.query),
        allowed_ids=search.allowed_ids,
    )


def _search_instances(state: CacheState, searches: Sequence[_Search], *, now_ms: int) -> list[SearchResult]:
    requests = []
    for query, vector, partitions, allowed_ids in searches:
        encoder_ids = state.index.encoder_ids(partitions)
        requests.append(
            SearchRequest(
                partitions=partitions,
                vector=vector,
                codes=state.encoders.query_codes(vector, encoder_ids, modality=query.source.modality),
                k=query.top_k,
                now_ms=now_ms,
                scope=_scope(query),
                allowed_ids=allowed_ids,
                min_recall=query.min_recall,
                path=query.path,
            )
        )
    try:
        return state.index.search_batch(requests)
    except PathUnavailableError as error:
        raise PreconditionError(str(error), reason="PATH_UNAVAILABLE") from error


def _scope(query: SearchQuery) -> int | None:
    return None if query.scope is None else scope_key(query.scope)
