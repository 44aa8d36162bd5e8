"""What the search paths find where they do not look at all rows."""

import numpy as np
import pytest
from index_rows import (
    ENCODER,
    KEY,
    NOW,
    TEXT,
    config,
    exact_distances,
    ids_of,
    index_of,
    make_rows,
    nearest_ids,
    sealed,
    unit_vectors,
)

from index import SearchPath, SearchRequest, VectorIndex, hamming_distances, pack
from index.planner import pass_rate

CASCADE, IVF, SCAN, HNSW, EXACT = SearchPath
KINDS = {
    "growing": (CASCADE, SCAN, EXACT),
    "sealed": (CASCADE, SCAN, EXACT),
    "graph": (CASCADE, SCAN, HNSW, EXACT),
    "lists": (CASCADE, IVF, SCAN, EXACT),
}
PATHS = [(kind, path) for kind, paths in KINDS.items() for path in paths]
BIG_BITS, BIG_DIM, BIG_COUNT = 256, 32, 12_000
BIG_SETTINGS = config(
    code_bits=BIG_BITS,
    label_bits=0,
    hnsw_ef_search=20,
    probe_count=12,
    cascade_min_rows=0,
)
BIG_PROJECTION = np.random.default_rng(98).standard_normal((BIG_DIM, BIG_BITS))
# Share of the 10 nearest live rows, those beyond the threshold left out.
RECALLS = {CASCADE: 0.96, IVF: 0.96, SCAN: 0.98, HNSW: 0.98, EXACT: 1.0}
THRESHOLD = 0.16


def encode_big(vectors):
    return pack(vectors.astype(np.float64) @ BIG_PROJECTION > 0)


@pytest.fixture(scope="module")
def big():
    """Clustered rows, a fifth dead; the queries lie near rows. (rows, queries)"""
    rng = np.random.default_rng(0)
    centres = unit_vectors(15, seed=1, dim=BIG_DIM)
    vectors = centres[rng.integers(0, 15, BIG_COUNT)] + 0.07 * rng.standard_normal((BIG_COUNT, BIG_DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = make_rows(
        range(BIG_COUNT),
        vectors=vectors.astype(np.float16),
        codes=encode_big(vectors),
        label_codes=np.empty((BIG_COUNT, 0), np.uint64),
        expire_times=rng.choice([NOW, NOW + 1], BIG_COUNT, p=[0.2, 0.8]),
    )
    queries = vectors[:40] + 0.03 * rng.standard_normal((40, BIG_DIM))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return rows, queries.astype(np.float32)


@pytest.fixture(scope="module")
def big_indexes(big):
    rows, _ = big
    growing = index_of((KEY, rows), settings=BIG_SETTINGS)
    others = {
        "sealed": sealed(rows),
        "graph": sealed(rows, with_graph=True),
        "lists": sealed(rows, list_count=100),
    }
    return {"growing": growing} | {
        kind: VectorIndex(BIG_SETTINGS, sealed=[segment]) for kind, segment in others.items()
    }


def big_request(query, **changes):
    """With the radii within which 99.9% of the rows at the threshold lie: mean and 3.3 deviations."""
    share = np.arccos(1 - THRESHOLD) / np.pi
    radii = {
        bits: int(np.ceil(bits * share + 3.3 * np.sqrt(bits * share * (1 - share))))
        for bits in (64, 128, BIG_BITS)
    }
    usual = {"codes": {ENCODER: encode_big(query[None])[0]}, "k": 10, "radii": {ENCODER: radii}}
    usual |= {"partitions": (TEXT,), "vector": query, "now_ms": NOW}
    return SearchRequest(**(usual | changes))


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_recall_of_every_path(big, big_indexes, kind, path):
    rows, queries = big
    live = rows.expire_times > NOW
    found_count = wanted_count = 0
    for query in queries:
        distances = exact_distances(rows.vectors, query)
        wanted = nearest_ids(rows.entry_ids, distances, k=10, live=live)
        wanted = [entry_id for entry_id in wanted if distances[entry_id] <= THRESHOLD]
        result = big_indexes[kind].search(big_request(query, path=path, threshold=THRESHOLD))
        for match in result.matches:
            assert match.cosine_distance == pytest.approx(distances[match.entry_id], abs=2e-6)
            assert live[match.entry_id]
        found_count += len(set(ids_of(result)) & set(wanted))
        wanted_count += len(wanted)
    assert wanted_count > 200
    assert found_count >= RECALLS[path] * wanted_count


def test_growing_and_sealed_segments_answer_the_same(big, big_indexes):
    _, queries = big
    for path in KINDS["sealed"]:
        for query in queries[:10]:
            asked = big_request(query, path=path, threshold=THRESHOLD)
            growing, sealed_one = (big_indexes[kind].search(asked) for kind in ("growing", "sealed"))
            assert growing.matches == sealed_one.matches
            assert growing.candidates_examined == sealed_one.candidates_examined


def test_lists_are_searched_in_part(big):
    rows, queries = big
    settings = config(code_bits=BIG_BITS, label_bits=0, candidate_count=BIG_COUNT, probe_count=4)
    index = VectorIndex(settings, sealed=[sealed(rows, list_count=100)])
    live_count = np.count_nonzero(rows.expire_times > NOW)
    for query in queries[:5]:
        result = index.search(big_request(query, path=IVF))
        assert result.path is IVF
        assert 0 < result.candidates_examined <= live_count / 3


def test_cascade_looks_at_the_lists_within_reach_of_the_threshold_only(big):
    rows, queries = big
    settings = config(code_bits=BIG_BITS, label_bits=0, candidate_count=BIG_COUNT, probe_count=1)
    index = VectorIndex(settings, sealed=[sealed(rows, list_count=100)])
    radii = {ENCODER: {64: 64, BIG_BITS: BIG_BITS}}
    live_count = np.count_nonzero(rows.expire_times > NOW)
    for query in queries[:5]:
        asked = big_request(query, path=CASCADE, threshold=0.05, radii=radii)
        assert 0 < index.search(asked).candidates_examined < live_count / 2


@pytest.mark.parametrize("kind", ["growing", "sealed"])
@pytest.mark.parametrize("limits", [(64, 128, 256), (9, 128, 256), (18, 20, 256), (64, 17, 60), (10, 20, 35)])
def test_cascade_takes_exactly_the_rows_within_its_radii(big, big_indexes, kind, limits):
    rows, queries = big
    live = rows.expire_times > NOW
    radii = dict(zip((64, 128, BIG_BITS), limits, strict=True))
    settings = config(code_bits=BIG_BITS, label_bits=0, candidate_count=BIG_COUNT)
    index = index_of((KEY, rows), settings=settings)
    if kind == "sealed":
        index = VectorIndex(settings, sealed=[sealed(rows)])
    for query in queries[:8]:
        code = encode_big(query[None])[0]
        within = live & (hamming_distances(rows.codes, code) <= limits[2])
        for words, limit in ((1, limits[0]), (2, limits[1])):
            if pass_rate(limit, 64 * words) * 512 < 1:  # else the limit saves nothing and is left out
                within &= hamming_distances(rows.codes[:, :words], code[:words]) <= limit
        asked = big_request(query, path=CASCADE, threshold=THRESHOLD, radii={ENCODER: radii}, k=20)
        result = index.search(asked)
        distances = exact_distances(rows.vectors, query)
        close = within & (distances <= THRESHOLD)
        assert ids_of(result) == nearest_ids(rows.entry_ids, distances, k=20, live=close)
        if close.any():
            assert result.candidates_examined == np.count_nonzero(within)
