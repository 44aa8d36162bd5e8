"""Plain vector search: the nearest entries, or the entries of the nearest classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from index.errors import PathUnavailableError
from index.planner import SearchPath
from index.requests import Match, SearchRequest, SearchResult
from service.database import reading
from service.embedder import Embedder
from service.embedding import Input, embed_inputs
from service.errors import PreconditionError
from service.keys import scope_key
from service.payload import unpack_payload
from service.records import EntryRecord, Selection
from service.replica import CacheReplica, CacheState
from service.rows import read_entries_by_id
from service.store import select_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """One search. `categories` empty: all; `scope` None: any; `with_entries`: read them from the store."""

    source: Input
    top_k: int = 10
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    scope: str | None = None
    path: SearchPath | None = None
    by_label: bool = False
    min_seq: int = 0
    with_entries: bool = False


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
            PreconditionError: a path or label codes that the index does not have.
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
        return [
            self._search_one(state, query, vector, now_ms=now_ms)
            for query, vector in zip(queries, vectors, strict=True)
        ]

    def _search_one(
        self, state: CacheState, query: SearchQuery, vector: NDArray[np.float32], *, now_ms: int
    ) -> SearchAnswer:
        names = query.categories or tuple(state.categories)
        partitions = tuple((state.category(name).id, query.source.modality) for name in names)
        allowed_ids = self._tagged(state, query)
        try:
            if query.by_label:
                result = self._search_labels(
                    state, query, vector, partitions, allowed_ids=allowed_ids, now_ms=now_ms
                )
            else:
                result = _search_instances(
                    state, query, vector, partitions, allowed_ids=allowed_ids, now_ms=now_ms
                )
        except PathUnavailableError as error:
            raise PreconditionError(str(error), reason="PATH_UNAVAILABLE") from error
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

    @staticmethod
    def _search_labels(
        state: CacheState,
        query: SearchQuery,
        vector: NDArray[np.float32],
        partitions: tuple[tuple[int, str], ...],
        *,
        allowed_ids: NDArray[np.int64] | None,
        now_ms: int,
    ) -> SearchResult:
        encoder = state.encoders.active
        modality = query.source.modality
        if encoder is None or encoder.label_head is None or encoder.label_head.modality != modality:
            raise PreconditionError(
                f"class retrieval needs an active encoder that has learned labels of modality {modality!r}",
                reason="NO_LABEL_CODES",
            )
        return state.index.search_labels(
            partitions=partitions,
            values=encoder.label_values(vector[None, :])[0],
            k=query.top_k,
            now_ms=now_ms,
            scope=None if query.scope is None else scope_key(query.scope),
            allowed_ids=allowed_ids,
        )


def _search_instances(
    state: CacheState,
    query: SearchQuery,
    vector: NDArray[np.float32],
    partitions: tuple[tuple[int, str], ...],
    *,
    allowed_ids: NDArray[np.int64] | None,
    now_ms: int,
) -> SearchResult:
    encoder_ids = state.index.encoder_ids(partitions)
    return state.index.search(
        SearchRequest(
            partitions=partitions,
            vector=vector,
            codes=state.encoders.query_codes(vector, encoder_ids, modality=query.source.modality),
            k=query.top_k,
            now_ms=now_ms,
            scope=None if query.scope is None else scope_key(query.scope),
            allowed_ids=allowed_ids,
            path=query.path,
        )
    )
