"""Searches take no lock: what they return beside a writer is of one state of each row."""

import threading

import numpy as np
import pytest
from index_rows import (
    ALL_RADII,
    CONFIG,
    ENCODER,
    KEY,
    TEXT,
    encode,
    exact_distances,
    index_of,
    make_rows,
    request,
    sealed,
    unit_vectors,
)

from index import Changes, SearchPath, SegmentKey, VectorIndex, hamming_distances, vector_index

OTHER = SegmentKey(2, "text", ENCODER)
STEPS = 400
QUERIES = unit_vectors(8, seed=4)
STAYS = 10**6  # entry ids of rows that stay, one at each query
OWN = 20 * STEPS  # their versions
# Row i is what payload b"i" is of.
VERSIONS = np.concatenate([unit_vectors(OWN, seed=3), QUERIES]).astype(np.float16)
CODES = encode(VERSIONS)


def versioned(ids, versions):
    """Rows whose payloads name the vectors that they have."""
    versions = np.asarray(list(versions))
    payloads = [str(version).encode() for version in versions.tolist()]
    return make_rows(ids, vectors=VERSIONS[versions], codes=CODES[versions], payloads=payloads)


def mismatches(query, matches):
    """Matches whose distances are not those of the vectors that their payloads name."""
    if not matches:
        return []
    versions = np.array([int(match.payload) for match in matches])
    found = np.array([match.cosine_distance for match in matches])
    bits = [match.hamming_distance for match in matches]
    exact = exact_distances(VERSIONS[versions], query)
    expected_bits = hamming_distances(CODES[versions], encode(query[None])[0]).tolist()
    wrong = (np.abs(found - exact) > 2e-6) | (np.array(bits) != expected_bits)
    return [matches[i] for i in np.flatnonzero(wrong)]


class Readers:
    """Threads that search until the writer is done, and keep what was wrong."""

    def __init__(self, search, *, count=3):
        self.wrong: list[object] = []
        self.searches = 0
        self.done = threading.Event()
        self.search = search
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(count)]

    def run(self, number):
        while not self.done.is_set():
            try:
                self.wrong += self.search(number)
            except Exception as error:
                self.wrong.append(error)
            self.searches += 1
            number += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *raised):
        self.done.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("path", [SearchPath.SCAN, SearchPath.CASCADE, SearchPath.EXACT])
@pytest.mark.parametrize("compact_min_dead", [5, vector_index.COMPACT_MIN_DEAD])
def test_no_search_returns_a_torn_replaced_or_deleted_row(monkeypatch, path, compact_min_dead):
    """Rows are appended, replaced in place or moved to another category, and deleted, oldest first."""
    monkeypatch.setattr(vector_index, "COMPACT_MIN_DEAD", compact_min_dead)
    first = versioned(range(200), range(200))
    stays = versioned(range(STAYS, STAYS + len(QUERIES)), range(OWN, OWN + len(QUERIES)))
    lists = sealed(first.take(np.arange(100)), list_count=4)
    index = VectorIndex(CONFIG, sealed=[lists])
    index.apply(Changes(seq=1, upserts=((KEY, first.take(np.arange(100, 200))), (KEY, stays))))
    deleted_below = [0]

    def search(number):
        floor = deleted_below[0]
        asked = [
            request(
                query,
                partitions=(TEXT, OTHER.partition),
                path=path,
                k=30,
                threshold=2.0,
                radii=ALL_RADII,
                scope=None,
            )
            for query in QUERIES[: 1 + number % 4]
        ]
        wrong = []
        for place, (single, result) in enumerate(zip(asked, index.search_batch(asked), strict=True)):
            ids = [match.entry_id for match in result.matches]
            wrong += mismatches(single.vector, result.matches)
            wrong += [("deleted", floor, ids)] if ids and min(ids) < floor else []
            wrong += [("twice", ids)] if len(set(ids)) < len(ids) else []
            nearest = [match.payload for match in result.matches[:1]]
            wrong += [("not its own row", ids)] if nearest != [str(OWN + place).encode()] else []
        return wrong

    version = next_id = 200
    with Readers(search) as readers:
        for step in range(STEPS):
            new = versioned(range(next_id, next_id + 4), range(version, version + 4))
            replaced = np.arange(next_id - 60, next_id - 60 + 8)
            moved = versioned(replaced, range(version + 4, version + 12))
            oldest = np.arange(4 * step, 4 * step + 4)
            upserts = ((KEY, new), (OTHER if step % 2 else KEY, moved))
            index.apply(Changes(seq=step + 2, upserts=upserts, deleted_ids=oldest))
            deleted_below[0] = 4 * step + 4
            next_id, version = next_id + 4, version + 12
    assert readers.wrong == []
    assert readers.searches > 0
    assert index.live_ids().tolist() == [*range(4 * STEPS, next_id), *range(STAYS, STAYS + 8)]


def test_rows_that_are_appended_while_blocks_are_searched_show_whole_or_not_at_all():
    """Codes are written into blocks that other threads are searching; all rows are near the queries."""
    near = QUERIES[:1] + 0.02 * unit_vectors(5_000, seed=5)
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float16)
    codes = encode(vectors)
    index = index_of((KEY, make_rows(range(5), vectors=vectors[:5], codes=codes[:5])))
    query = QUERIES[0]
    exact = exact_distances(vectors, query)
    bits = hamming_distances(codes, encode(query[None])[0])
    applied = [5]

    def search(number):
        at_least = applied[0]
        result = index.search(request(query, k=40, path=SearchPath.SCAN))
        ids = np.array([match.entry_id for match in result.matches])
        distances = np.array([match.cosine_distance for match in result.matches])
        wrong = [] if np.abs(distances - exact[ids]).max() < 2e-6 else [("distances", ids)]
        if [match.hamming_distance for match in result.matches] != bits[ids].tolist():
            wrong.append(("bits", ids))
        best = int(bits[:at_least].min())
        if at_least >= 40 and bits[ids].min() > best and result.candidates_examined >= 256:
            wrong.append(("nearest code missed", best, ids))
        if len(ids) < min(at_least, 40):
            wrong.append(("few", at_least, ids))
        return wrong

    with Readers(search) as readers:
        for start in range(5, 5_000, 5):
            rows = make_rows(
                range(start, start + 5),
                vectors=vectors[start : start + 5],
                codes=codes[start : start + 5],
            )
            index.apply(Changes(seq=start, upserts=((KEY, rows),)))
            applied[0] = start + 5
    assert readers.wrong == []
    assert readers.searches > 0


def test_an_expire_time_that_is_moved_never_shows_a_dead_row():
    """Half of the rows flicker between two expire times, both in the past."""
    index = index_of((KEY, make_rows(range(600))))
    index.apply(Changes(seq=2, expire_ids=np.arange(0, 600, 2), expire_times=np.full(300, 5)))

    def search(number):
        result = index.search(request(QUERIES[number % 8], k=50))
        dead = [match.entry_id for match in result.matches if match.entry_id % 2 == 0]
        return [dead] if dead or len(result.matches) != 50 else []

    with Readers(search) as readers:
        for seq in range(3, 400):
            times = np.full(300, 1 + seq % 900)
            index.apply(Changes(seq=seq, expire_ids=np.arange(0, 600, 2), expire_times=times))
    assert readers.wrong == []
