"""What searches of lists and of cut candidates may say about a threshold: no hit is lost by them."""

import numpy as np
import pytest
from index_rows import (
    ALL_RADII,
    CODE_BITS,
    CONFIG,
    DIM,
    ENCODER,
    KEY,
    changed,
    config,
    encode,
    exact_distances,
    ids_of,
    make_rows,
    nearest_ids,
    request,
    sealed,
    unit_vectors,
)

from index import InvertedLists, PathUnavailableError, SealedSegment, SearchPath, VectorIndex
from index.list_margins import COVERAGE, ListMargins
from index.lists import build_lists

CASCADE, IVF, SCAN, HNSW, EXACT = SearchPath
CUT = config(candidate_count=5, candidates_per_result=5, probe_count=2)  # fewer candidates than rows
ROW_COUNT = 24_000


def at_distance(vectors, distance, *, seed):
    """Rows of norm 1 at this cosine distance from `vectors`, each in a random direction."""
    across = np.random.default_rng(seed).standard_normal(vectors.shape)
    across -= np.einsum("ij,ij->i", across, vectors)[:, None] * vectors
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosine = 1 - distance
    return cosine * vectors + np.sqrt(1 - cosine**2) * across


def flipped(code, *, bits):
    """A code with its first `bits` bits flipped."""
    return code ^ np.array([(1 << bits) - 1, 0], dtype=np.uint64)


def far_index(*, settings=CUT, list_count=9):
    """6,000 rows, and a query that is near none of them."""
    index = VectorIndex(settings, sealed=[sealed(make_rows(range(6_000)), list_count=list_count)])
    return index, request(unit_vectors(1, seed=7)[0], threshold=1e-6, k=1)


# What a cut list of candidates proves.


@pytest.mark.parametrize(
    ("path", "radii"), [(IVF, {}), (IVF, ALL_RADII), (CASCADE, ALL_RADII), (SCAN, {}), (SCAN, ALL_RADII)]
)
def test_cut_candidates_within_the_radius_are_searched_again_on_floats(path, radii):
    index, asked = far_index()
    result = index.search(changed(asked, path=path, radii=radii))
    assert (result.matches, result.path, result.candidates_examined) == ((), EXACT, 6_000)


@pytest.mark.parametrize("path", [IVF, SCAN])
def test_cut_candidates_beyond_the_radius_are_a_miss(path):
    index, asked = far_index()
    result = index.search(changed(asked, path=path, radii={ENCODER: {CODE_BITS: 3}}))
    assert (result.matches, result.path, result.candidates_examined) == ((), path, 5)


@pytest.mark.parametrize("path", [IVF, CASCADE])
def test_lists_whose_candidates_are_not_cut_are_a_miss(path):
    index, asked = far_index(settings=config(candidate_count=6_001, probe_count=2, list_recall=0.0))
    result = index.search(changed(asked, path=path, radii=ALL_RADII))
    assert (result.matches, result.path) == ((), path)
    assert 0 < result.candidates_examined < 6_000


@pytest.mark.parametrize("radii", [{64: 3}, {64: 0}, {1: 0, 64: 3}])
@pytest.mark.parametrize("list_count", [0, 9])
def test_radii_without_that_of_the_whole_code_prove_nothing(radii, list_count):
    index, asked = far_index(list_count=list_count)
    asked = changed(asked, radii={ENCODER: radii})
    with pytest.raises(PathUnavailableError, match="radii"):
        index.search(changed(asked, path=CASCADE))
    for path in (None, SCAN, IVF) if list_count else (None, SCAN):
        result = index.search(changed(asked, path=path))
        assert (result.matches, result.path) == ((), EXACT)


@pytest.fixture(scope="module")
def dense(request):
    """A tight cluster, all of it beyond the threshold, whose codes are nearer to the query than that of the
    one row within: (index, the query). The row's id is 12,000. The parameter: how many lists."""
    query = unit_vectors(1, seed=7)
    centre = at_distance(query, 0.09, seed=1)
    cluster = at_distance(np.repeat(centre, 6_000, axis=0), 1e-4, seed=2)
    others, planted = unit_vectors(6_000, seed=3), at_distance(query, 0.03, seed=4)
    code = encode(query)[0]
    codes = np.concatenate(
        [np.repeat(flipped(code, bits=1)[None], 6_000, axis=0), encode(others), flipped(code, bits=5)[None]]
    )
    vectors = np.concatenate([cluster, others, planted]).astype(np.float16)
    rows = make_rows(range(12_001), vectors=vectors, codes=codes)
    assert np.flatnonzero(exact_distances(vectors, query[0]) <= 0.05).tolist() == [12_000]
    return VectorIndex(CONFIG, sealed=[sealed(rows, list_count=request.param)]), query[0]


@pytest.mark.parametrize(
    ("dense", "path"),
    [(0, None), (0, CASCADE), (0, SCAN), (12, None), (12, CASCADE), (12, IVF), (12, SCAN)],
    indirect=["dense"],
)
@pytest.mark.parametrize("radius", [5, 12])
def test_hit_behind_a_dense_cluster_is_found(dense, path, radius):
    index, query = dense
    radii = {ENCODER: {64: radius, CODE_BITS: radius}}
    result = index.search(request(query, path=path, threshold=0.05, radii=radii))
    assert (ids_of(result), result.path) == ([12_000], EXACT)


@pytest.mark.parametrize(
    ("dense", "path"), [(0, None), (0, SCAN), (12, None), (12, IVF), (12, SCAN)], indirect=["dense"]
)
@pytest.mark.parametrize("radii", [{}, {64: 0}])
def test_hit_behind_a_dense_cluster_is_found_without_a_radius(dense, path, radii):
    index, query = dense
    result = index.search(request(query, path=path, threshold=0.05, radii={ENCODER: radii}))
    assert (ids_of(result), result.path) == ([12_000], EXACT)


# Which lists are searched.


@pytest.fixture(scope="module")
def planted():
    """24,000 rows around 60 centres in many lists, and queries at .02 to .095 from one of them."""
    rng, centres = np.random.default_rng(3), unit_vectors(60, seed=2)
    vectors = centres[rng.integers(0, 60, ROW_COUNT)] + 0.15 * rng.standard_normal((ROW_COUNT, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sources = rng.choice(ROW_COUNT, 400, replace=False)
    near = [at_distance(vectors[sources[i::4]], d, seed=i) for i, d in enumerate((0.02, 0.05, 0.08, 0.095))]
    rows = make_rows(range(ROW_COUNT), vectors=vectors.astype(np.float16))
    return sealed(rows, list_count=200), np.concatenate(near).astype(np.float32)


def test_lists_with_a_threshold_hold_the_hits_that_a_scan_finds(planted):
    segment, queries = planted
    settings = config(probe_count=4, list_recall=0.0, candidate_count=ROW_COUNT)
    index = VectorIndex(settings, sealed=[segment])
    hits = missed = searched = 0
    for query in queries:
        asked = request(query, threshold=0.1, k=10)
        scanned, listed = (index.search(changed(asked, path=path)) for path in (SCAN, IVF))
        assert (scanned.path, listed.path) == (SCAN, IVF)
        hits += len(scanned.matches)
        missed += len(set(ids_of(scanned)) - set(ids_of(listed)))
        searched += listed.candidates_examined
    assert hits >= len(queries)
    assert missed <= 2 * (1 - COVERAGE) * hits + 1
    assert searched < 0.2 * ROW_COUNT * len(queries)


@pytest.mark.parametrize("list_recall", [0.0, 0.999])
@pytest.mark.parametrize("threshold", [None, 0.05, 0.1])
@pytest.mark.parametrize("min_recall", [0.0, 0.95, 0.999])
def test_lists_are_searched_to_the_larger_of_both_margins(planted, list_recall, threshold, min_recall):
    segment, queries = planted
    settings = config(probe_count=1, list_recall=list_recall, candidate_count=ROW_COUNT)
    index = VectorIndex(settings, sealed=[segment])
    lists = segment.lists
    near = lists.near(least=1, recall=max(list_recall, min_recall), cosine_distance=threshold)
    for query in queries[::50]:
        result = index.search(request(query, path=IVF, threshold=threshold, min_recall=min_recall))
        assert result.candidates_examined == np.diff(lists.spans(query, near), axis=1).sum()


def test_cascade_searches_lists_to_the_margin_of_its_threshold_alone(planted):
    segment, queries = planted
    index = VectorIndex(config(probe_count=1, candidate_count=ROW_COUNT), sealed=[segment])
    lists = segment.lists
    for query in queries[::50]:
        asked = request(query, path=CASCADE, threshold=0.05, radii=ALL_RADII, min_recall=0.999)
        spans = lists.spans(query, lists.near(least=1, cosine_distance=0.05))
        assert index.search(asked).candidates_examined == np.diff(spans, axis=1).sum()


@pytest.mark.parametrize(("path", "threshold"), [(IVF, None), (IVF, 2.0), (CASCADE, 2.0)])
def test_all_lists_without_margins_are_searched(path, threshold):
    rows = make_rows(range(900))
    order, lists = build_lists(rows.vectors, list_count=9, seed=1)
    unmeasured = InvertedLists(centroids=lists.centroids, bounds=lists.bounds, margins=ListMargins.unknown())
    segment = SealedSegment(KEY, rows.take(order), lists=unmeasured)
    index = VectorIndex(config(probe_count=1, candidate_count=900), sealed=[segment])
    for query in unit_vectors(5, seed=8):
        distances = exact_distances(rows.vectors, query)
        result = index.search(request(query, path=path, threshold=threshold, radii=ALL_RADII))
        assert ids_of(result) == nearest_ids(rows.entry_ids, distances, k=5, live=rows.expire_times > 0)
        assert (result.path, result.candidates_examined) == (path, 900)
