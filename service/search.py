"""Plain vector search: the nearest entries, or the entries of the nearest classes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from service.embedding import Embedded, Input, embed_inputs
from service.errors import PreconditionError
from service.keys import scope_key
from service.payload import unpack_payload
from service.records import EntryRecord, Selection
from service.replica import CacheReplica, CacheState
from service.rows import read_entries_by_id
from service.selection import select_rows
from service.spaces import current_space, spaces_of


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
    """The matches, nearest first, and their entries by row id where they were asked for. mapped_ids: rows
    that were compared with the query mapped to the space of the embedder before."""

    state: CacheState
    result: SearchResult
    mapped_ids: frozenset[int] = frozenset()
    entries: Mapping[int, EntryRecord] | None = None

    def named_matches(self) -> Iterator[tuple[Match, str]]:
        """Matches with their entries' ids; ones deleted since are left out where entries were read."""
        for match in self.result.matches:
            if self.entries is None or match.entry_id in self.entries:
                yield match, unpack_payload(match.payload).entry


class _Search(NamedTuple):
    """One search and the rows that it is about. categories: row ids. `allowed_ids`: int64 [m] or None."""

    query: SearchQuery
    embedded: Embedded
    categories: tuple[int, ...]
    allowed_ids: NDArray[np.int64] | None

    def partitions(self, spaces: Sequence[str]) -> tuple[Partition, ...]:
        """Those of its categories in some spaces."""
        return tuple((category_id, space) for category_id in self.categories for space in spaces)


class _Found(NamedTuple):
    """What a search found, and which of it by a mapped query."""

    result: SearchResult
    mapped_ids: frozenset[int] = frozenset()


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
        embedded = embed_inputs(
            replica.state.record,
            [query.source for query in queries],
            embedder=self._embedder,
            timeout_seconds=timeout_seconds,
        )
        # Embedding may have taken long: what is found is what is live and known now.
        state, now_ms = replica.state, self._clock()
        searches = [self._filtered(state, query, own) for query, own in zip(queries, embedded, strict=True)]
        results = _search_all(state, searches, now_ms=now_ms)
        return [self._answer(state, query, *found) for query, found in zip(queries, results, strict=True)]

    def _filtered(self, state: CacheState, query: SearchQuery, embedded: Embedded) -> _Search:
        names = query.categories or tuple(state.categories)
        spaces_of(state.record, query.target)  # or it is refused
        category_ids = tuple(state.category(name).id for name in names)
        return _Search(query, embedded, category_ids, self._tagged(state, query))

    def _answer(
        self, state: CacheState, query: SearchQuery, result: SearchResult, mapped_ids: frozenset[int]
    ) -> SearchAnswer:
        if not query.with_entries:
            return SearchAnswer(state=state, result=result, mapped_ids=mapped_ids)
        with reading(self._engine) as connection:
            found = read_entries_by_id(
                connection, state.record.id, [match.entry_id for match in result.matches]
            )
        return SearchAnswer(state=state, result=result, mapped_ids=mapped_ids, entries=found)

    def _tagged(self, state: CacheState, query: SearchQuery) -> NDArray[np.int64] | None:
        if not query.tags:
            return None
        with reading(self._engine) as connection:
            return np.array(
                select_rows(connection, state.record.id, Selection(tags=query.tags), live_at=0),
                dtype=np.int64,
            )


def _search_all(state: CacheState, searches: Sequence[_Search], *, now_ms: int) -> list[_Found]:
    """One result per search; those of instances that search the same rows share a pass over their codes.

    Raises: PreconditionError.
    """
    by_code = {
        i: _Found((_search_labels if search.query.by_label else _search_across)(state, search, now_ms=now_ms))
        for i, search in enumerate(searches)
        if search.query.by_label or search.query.crosses
    }
    instances = [search for i, search in enumerate(searches) if i not in by_code]
    found = iter(_search_instances(state, instances, now_ms=now_ms))
    return [by_code[i] if i in by_code else next(found) for i in range(len(searches))]


def _search_labels(state: CacheState, search: _Search, *, now_ms: int) -> SearchResult:
    encoder = state.encoders.active
    query = None if encoder is None else _understood(state, search, encoder.label_modalities)
    if encoder is None or query is None:
        raise PreconditionError(
            "class retrieval needs an active encoder that has learned labels of modality "
            f"{search.query.source.modality!r}",
            reason="NO_LABEL_CODES",
        )
    return state.index.search_labels(
        partitions=search.partitions(spaces_of(state.record, search.query.target)),
        values=encoder.label_values(query.vector[None, :], modality=query.space)[0],
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
    active = state.encoders.active
    target = current_space(state.record, search.query.target)
    query = None if active is None else _understood(state, search, active.modalities)
    if active is None or query is None or not active.can_cross(query.space, target=target):
        raise PreconditionError(
            f"a query of modality {search.query.source.modality!r} finds entries of modality "
            f"{search.query.target!r} only with an active encoder that was trained on both: "
            "nearhit train --crossmodal",
            reason="NO_CROSS_MODAL_ENCODER",
        )
    if search.query.path not in (None, SearchPath.SCAN):
        raise PreconditionError(
            f"between modalities codes are scanned: there is no path {search.query.path.name}",
            reason="PATH_UNAVAILABLE",
        )
    queries = {}
    partitions = search.partitions((target,))
    for encoder_id in state.index.encoder_ids(partitions):
        encoder = state.encoders.query_encoder(encoder_id)
        if encoder is None or not encoder.can_cross(query.space, target=target):
            continue
        values = encoder.cross_values(query.vector[None, :], modality=query.space, target=target)
        bits = encoder.cross_bits(query.vector[None, :], modality=query.space, target=target)
        queries[encoder_id] = ValueQuery(
            values=values[0], code=pack(bits)[0], mask=pack(encoder.cross_mask[None, :])[0]
        )
    return state.index.search_values(
        partitions=partitions,
        queries=queries,
        k=search.query.top_k,
        now_ms=now_ms,
        scope=_scope(search.query),
        allowed_ids=search.allowed_ids,
    )


def _understood(state: CacheState, search: _Search, spaces: Collection[str]) -> Embedded | None:
    """The query in one of the spaces, its own or the one that it is mapped to; None: it is in none."""
    for query in (search.embedded, _mapped(state, search.embedded)):
        if query is not None and query.space in spaces:
            return query
    return None


def _mapped(state: CacheState, embedded: Embedded) -> Embedded | None:
    """The query in the space of the embedder before; None: it is not mapped."""
    served = state.maps.get(embedded.space)
    return None if served is None else Embedded(served.apply(embedded.vector), served.modality)


def _search_instances(state: CacheState, searches: Sequence[_Search], *, now_ms: int) -> list[_Found]:
    """Each search in its own space, and mapped in that of the embedder before where there is a map."""
    own = [_request(state, search, search.embedded, now_ms=now_ms) for search in searches]
    mapped = {
        i: _request(state, search, query, now_ms=now_ms)
        for i, search in enumerate(searches)
        if (query := _mapped(state, search.embedded)) is not None
    }
    try:
        results = iter(state.index.search_batch([*own, *mapped.values()]))
    except PathUnavailableError as error:
        if not mapped:
            raise PreconditionError(str(error), reason="PATH_UNAVAILABLE") from error
        return [_search_either(state, own[i], mapped.get(i)) for i in range(len(own))]
    found = [_Found(next(results)) for _ in own]
    for i in mapped:
        found[i] = _merged(found[i].result, next(results), k=searches[i].query.top_k)
    return found


def _search_either(state: CacheState, own: SearchRequest, mapped: SearchRequest | None) -> _Found:
    """One search by a path that one space of two has; for the other the planner chooses.

    Raises: PreconditionError: no space that has rows has it.
    """
    results: list[SearchResult] = []
    refusal: PathUnavailableError | None = None
    has_path = False
    filled = frozenset(state.index.partitions)
    for request in (own,) if mapped is None else (own, mapped):
        try:
            results.append(state.index.search(request))
            has_path |= not filled.isdisjoint(request.partitions)
        except PathUnavailableError as error:
            refusal = error
            results.append(state.index.search(replace(request, path=None)))
    if refusal is not None and not has_path:
        raise PreconditionError(str(refusal), reason="PATH_UNAVAILABLE") from refusal
    return _Found(results[0]) if mapped is None else _merged(results[0], results[1], k=own.k)


def _request(state: CacheState, search: _Search, query: Embedded, *, now_ms: int) -> SearchRequest:
    partitions = search.partitions((query.space,))
    encoder_ids = state.index.encoder_ids(partitions)
    return SearchRequest(
        partitions=partitions,
        vector=query.vector,
        codes=state.encoders.query_codes(query.vector, encoder_ids, modality=query.space),
        k=search.query.top_k,
        now_ms=now_ms,
        scope=_scope(search.query),
        allowed_ids=search.allowed_ids,
        min_recall=search.query.min_recall,
        path=search.query.path,
    )


def _merged(own: SearchResult, mapped: SearchResult, *, k: int) -> _Found:
    """The k nearest of both; an entry that was moved between them meanwhile is its own space's."""
    known = {match.entry_id for match in own.matches}
    others = [match for match in mapped.matches if match.entry_id not in known]
    matches = sorted((*own.matches, *others), key=lambda match: (match.cosine_distance, match.entry_id))[:k]
    nearest = [found.nearest_distance for found in (own, mapped) if found.nearest_distance is not None]
    result = own._replace(
        matches=tuple(matches),
        path=max(own.path, mapped.path, key=lambda path: path.cost),
        candidates_examined=own.candidates_examined + mapped.candidates_examined,
        nearest_distance=min(nearest, default=None),
    )
    return _Found(result, frozenset(match.entry_id for match in others))


def _scope(query: SearchQuery) -> int | None:
    return None if query.scope is None else scope_key(query.scope)
