"""A million random lookups: no match of another cache, category, modality or scope, none dead.

All rows have vectors of one small pool, so that the nearest row of every other partition is as near as a
partition's own, and entry ids are the same in all caches.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from index_rows import ALL_RADII, CONFIG, ENCODER, config, encode, make_rows, sealed, unit_vectors

from index import Changes, SearchPath, SearchRequest, SegmentKey, VectorIndex, vector_index

LOOKUPS, PROCESSES, BATCH = 1_000_000, 2, 5_000
POOL = unit_vectors(12, seed=1)
POOL_CODES = encode(POOL)
CATEGORIES, MODALITIES, SCOPES, CACHES = 4, ("text", "image"), 3, 4
PARTITIONS = [(category, modality) for category in range(CATEGORIES) for modality in MODALITIES]
ID_COUNT = 160  # of each cache
SEALED = {1: {}, 3: {"list_count": 3}}  # partitions that begin with a sealed segment; 0 has no codes
PATHS = [None] * 4 + [SearchPath.SCAN] * 4 + [SearchPath.CASCADE] * 4 + [SearchPath.EXACT]
TIGHT_RADII = {ENCODER: {64: 12, CONFIG.code_bits: 14}}
SETTINGS = config(candidate_count=40, candidates_per_result=4, cascade_min_rows=0, probe_count=2)


@dataclass
class Model:
    """What one cache should hold, by entry id."""

    number: int
    index: VectorIndex
    partition: np.ndarray = field(default_factory=lambda: np.full(ID_COUNT, -1))  # -1: no row
    scope: np.ndarray = field(default_factory=lambda: np.zeros(ID_COUNT, np.uint64))
    expire_time: np.ndarray = field(default_factory=lambda: np.zeros(ID_COUNT, np.int64))
    payload: list[bytes] = field(default_factory=lambda: [b""] * ID_COUNT)

    def remember(self, rows, partition):
        ids = rows.entry_ids
        self.partition[ids], self.scope[ids], self.expire_time[ids] = (
            partition,
            rows.scopes,
            rows.expire_times,
        )
        for entry_id, payload in zip(ids.tolist(), rows.payloads, strict=True):
            self.payload[entry_id] = payload


def random_rows(rng, ids, *, number, partition, now_ms):
    which = rng.integers(0, len(POOL), len(ids))
    return make_rows(
        ids,
        vectors=POOL[which].astype(np.float16),
        codes=POOL_CODES[which] if partition else None,
        with_codes=False,
        scopes=rng.integers(0, SCOPES, len(ids)).astype(np.uint64),
        expire_times=now_ms + rng.choice([1, 10, 40, 10**6], len(ids)),
        payloads=[f"{number}/{partition}/{entry_id}/{now_ms}".encode() for entry_id in ids],
    )


def key_of(partition):
    return SegmentKey(*PARTITIONS[partition], ENCODER if partition else None)


def new_cache(rng, number):
    """A quarter of the rows sealed, half of these with lists."""
    ids = rng.permutation(ID_COUNT)
    segments, parts = [], []
    for partition, chosen in enumerate(np.array_split(ids, len(PARTITIONS))):
        rows = random_rows(rng, np.sort(chosen), number=number, partition=partition, now_ms=0)
        parts.append((rows, partition))
        if partition in SEALED:
            segments.append(sealed(rows, key=key_of(partition), **SEALED[partition]))
    model = Model(number, VectorIndex(SETTINGS, sealed=segments))
    upserts = tuple((key_of(partition), rows) for rows, partition in parts if partition not in SEALED)
    model.index.apply(Changes(seq=1, upserts=upserts))
    for rows, partition in parts:
        model.remember(rows, partition)
    return model


def change(rng, model, *, now_ms):
    """Replace rows, also into other partitions and scopes, delete some and move expire times."""
    ids = rng.choice(ID_COUNT, 14, replace=False)
    partition = int(rng.integers(len(PARTITIONS)))
    rows = random_rows(rng, ids[:6], number=model.number, partition=partition, now_ms=now_ms)
    moved, deleted = ids[6:10], ids[10:]
    times = now_ms + rng.choice([1, 10, 10**6], moved.size)
    model.index.apply(
        Changes(
            seq=model.index.applied_seq + 1,
            upserts=((key_of(partition), rows),),
            expire_ids=moved,
            expire_times=times,
            deleted_ids=deleted,
        )
    )
    model.remember(rows, partition)
    model.expire_time[moved] = times
    model.partition[deleted] = -1


def random_requests(rng, *, now_ms):
    k = int(rng.integers(1, 4))
    path = PATHS[rng.integers(len(PATHS))]
    radii = ALL_RADII if rng.random() < 0.5 else TIGHT_RADII
    threshold = 2.0 if path is SearchPath.CASCADE else [None, 0.1, 0.7][rng.integers(3)]
    allowed_ids = rng.permutation(ID_COUNT)[:100] if rng.random() < 0.1 else None
    queries = rng.integers(0, len(POOL), BATCH).tolist()
    # Where there are no codes or lists, searches share nothing: a search in ten is of these.
    first = rng.choice(np.arange(len(PARTITIONS)), BATCH, p=np.array([1, 3, 3, 1, 3, 3, 3, 3]) / 20).tolist()
    second = np.where(rng.random(BATCH) < 0.05, rng.integers(0, len(PARTITIONS), BATCH), -1).tolist()
    scopes = rng.integers(-1, SCOPES, BATCH).tolist()
    codes = [{ENCODER: code} for code in POOL_CODES]
    return [
        SearchRequest(
            partitions=(PARTITIONS[one],) if other < 0 else (PARTITIONS[one], PARTITIONS[other]),
            vector=POOL[query],
            codes=codes[query],
            k=k,
            now_ms=now_ms,
            scope=None if scope < 0 else scope,
            allowed_ids=allowed_ids,
            threshold=threshold,
            radii=radii,
            path=path if one else None,
        )
        for query, one, other, scope in zip(queries, first, second, scopes, strict=True)
    ]


def leaks(model, requests, results, *, now_ms):
    """(matches, what is wrong with some of them)."""
    ids = np.array([match.entry_id for result in results for match in result.matches], dtype=np.int64)
    owners = np.repeat(np.arange(len(requests)), [len(result.matches) for result in results])
    asked = np.zeros((len(requests), len(PARTITIONS) + 1), dtype=np.bool_)  # the last: no partition
    places = {partition: place for place, partition in enumerate(PARTITIONS)}
    for number, request in enumerate(requests):
        for partition in request.partitions:
            asked[number, places[partition]] = True
    scopes = np.array([-1 if request.scope is None else request.scope for request in requests])[owners]
    payloads = [match.payload for result in results for match in result.matches]
    wrong = {
        "partition": ~asked[owners, model.partition[ids]],
        "scope": (scopes >= 0) & (model.scope[ids].astype(np.int64) != scopes),
        "expired": model.expire_time[ids] <= now_ms,
        "cache": np.array([model.payload[i] != p for i, p in zip(ids.tolist(), payloads, strict=True)], bool),
        "category": np.array(
            [
                PARTITIONS[model.partition[match.entry_id]][0] != match.category_id
                for result in results
                for match in result.matches
            ],
            bool,
        ),
    }
    if requests[0].allowed_ids is not None:
        wrong["allowed"] = ~np.isin(ids, requests[0].allowed_ids)
    return ids.size, [(name, int(mask.sum())) for name, mask in wrong.items() if mask.any()]


def fuzz(seed):
    """One process's share: (lookups, matches, what leaked)."""
    vector_index.COMPACT_MIN_DEAD = 10
    rng = np.random.default_rng(seed)
    models = [new_cache(rng, number) for number in range(CACHES)]
    now_ms = lookup_count = match_count = 0
    wrong = []
    while lookup_count < LOOKUPS // PROCESSES:
        now_ms += 1
        for model in models:
            change(rng, model, now_ms=now_ms)
        model = models[rng.integers(CACHES)]
        requests = random_requests(rng, now_ms=now_ms)
        found, leaked = leaks(model, requests, model.index.search_batch(requests), now_ms=now_ms)
        lookup_count += len(requests)
        match_count += found
        wrong += leaked
    return lookup_count, match_count, wrong


@pytest.mark.timeout(400)
def test_a_million_random_lookups_leak_nothing():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        lookups, matches, wrong = zip(*pool.map(fuzz, range(PROCESSES)), strict=True)
    assert list(wrong) == [[]] * PROCESSES
    assert sum(lookups) == LOOKUPS
    assert sum(matches) > LOOKUPS / 2
