import numpy as np
import pytest
from index_rows import (
    CODE_BITS,
    CONFIG,
    DIM,
    ENCODER,
    KEY,
    NOW,
    TEXT,
    changed,
    config,
    encode,
    exact_distances,
    ids_of,
    index_of,
    make_rows,
    nearest_ids,
    request,
    sealed,
    unit_vectors,
    varied_rows,
)

from index import (
    Changes,
    PathUnavailableError,
    SearchPath,
    SegmentKey,
    VectorIndex,
    hamming_distances,
)

# Answers.


def test_scan_reranks_the_nearest_codes_only():
    rows = make_rows(range(300))
    index = index_of((KEY, rows), settings=config(candidate_count=4, candidates_per_result=2))
    query = unit_vectors(1, seed=7)[0]
    result = index.search(request(query, k=3))
    hamming = hamming_distances(rows.codes, encode(query[None])[0])
    candidates = np.lexsort((rows.entry_ids, hamming))[:6]
    distances = exact_distances(rows.vectors[candidates], query)
    assert ids_of(result) == candidates[np.argsort(distances)][:3].tolist()
    assert (result.path, result.candidates_examined) == (SearchPath.SCAN, 6)
    assert result.nearest_distance == pytest.approx(distances.min(), abs=1e-6)


def test_matches_carry_payload_and_category():
    index = index_of((KEY, make_rows([5, 6])))
    for match in index.search(request(unit_vectors(1, seed=1)[0])).matches:
        assert (match.payload, match.category_id) == (f"payload of {match.entry_id}".encode(), 1)


def test_equal_distances_are_ranked_by_entry_id_on_every_path():
    vectors = np.repeat(unit_vectors(1, seed=3), 6, axis=0).astype(np.float16)
    rows = make_rows([9, 2, 7, 4, 1, 8], vectors=vectors)
    index = index_of((KEY, rows))
    for path in (SearchPath.SCAN, SearchPath.EXACT):
        assert ids_of(index.search(request(unit_vectors(1, seed=4)[0], path=path, k=3))) == [1, 2, 4]


def test_matches_of_a_graph_are_in_the_order_of_their_exact_distances_and_ids():
    """Of rows so near each other that the graph's own distances give another order, each of them twice."""
    rng = np.random.default_rng(5)
    near = (unit_vectors(1, seed=3) + 1e-3 * rng.standard_normal((200, DIM)))[rng.permutation(400) // 2]
    rows = make_rows(range(400), vectors=near.astype(np.float16))
    index = VectorIndex(CONFIG, sealed=[sealed(rows, with_graph=True)])
    for query in unit_vectors(5, seed=4):
        result = index.search(request(query, path=SearchPath.HNSW, k=100))
        assert result.path is SearchPath.HNSW
        ranked = [(match.cosine_distance, match.entry_id) for match in result.matches]
        assert ranked == sorted(ranked)
        assert len({distance for distance, _ in ranked}) < 60


def test_partitions_and_segments_are_merged():
    parts = {
        KEY: varied_rows(40, seed=1),
        SegmentKey(2, "text", ENCODER): varied_rows(40, seed=2, first_id=100),
        SegmentKey(2, "text", "encoder-b"): varied_rows(40, seed=3, first_id=200),
        SegmentKey(2, "text", None): varied_rows(40, seed=4, first_id=300, with_codes=False),
    }
    index = index_of(*parts.items())
    query = unit_vectors(1, seed=7)[0]
    result = index.search(request(query, partitions=(TEXT, (2, "text"), TEXT), k=30))
    ids = np.concatenate([rows.entry_ids for rows in parts.values()])
    vectors = np.concatenate([rows.vectors for rows in parts.values()])
    live = np.concatenate([rows.expire_times for rows in parts.values()]) > NOW
    assert ids_of(result) == nearest_ids(ids, exact_distances(vectors, query), k=30, live=live)
    assert result.path is SearchPath.EXACT  # rows of encoder-b and without encoder have no query code
    for match in result.matches:
        assert (match.hamming_distance is None) == (match.entry_id >= 200)


def test_other_categories_and_modalities_are_never_returned():
    query = unit_vectors(1, seed=7)[0]
    same = {"vectors": query[None].astype(np.float16)}
    index = index_of(
        (SegmentKey(2, "text", ENCODER), make_rows([1], **same)),
        (SegmentKey(1, "image", ENCODER), make_rows([2], **same)),
        (KEY, make_rows([3])),
    )
    assert ids_of(index.search(request(query))) == [3]
    assert ids_of(index.search(request(query, partitions=((3, "text"),)))) == []


def test_search_of_nothing_answers_an_empty_result():
    result = VectorIndex(CONFIG, watermark=9).search(
        request(unit_vectors(1, seed=0)[0], path=SearchPath.HNSW)
    )
    assert (result.matches, result.nearest_distance, result.path) == ((), None, SearchPath.SCAN)
    assert (result.applied_seq, result.candidates_examined, result.generation) == (9, 0, None)


# Thresholds and fallbacks.


def test_matches_above_the_threshold_are_dropped_but_the_nearest_is_known():
    rows = make_rows(range(50))
    index = index_of((KEY, rows))
    query = unit_vectors(1, seed=7)[0]
    distances = np.sort(exact_distances(rows.vectors, query))
    cut = float(distances[2] + distances[3]) / 2
    assert len(index.search(request(query, threshold=cut)).matches) == 3
    result = index.search(request(query, threshold=float(distances[0]) / 2))
    assert result.matches == ()
    assert result.nearest_distance == pytest.approx(distances[0], abs=1e-6)


def test_distance_is_compared_with_the_threshold_in_full_precision():
    rows = make_rows(range(20))
    index = index_of((KEY, rows))
    query = unit_vectors(1, seed=7)[0]
    nearest = index.search(request(query)).matches[0].cosine_distance
    just_below = np.nextafter(nearest, 0)
    assert index.search(request(query, threshold=nearest, k=1)).matches != ()
    assert index.search(request(query, threshold=float(just_below), k=1)).matches == ()


def test_nearest_distance_is_that_of_the_nearest_row_of_all_segments():
    query = unit_vectors(1, seed=7)[0]
    parts = [make_rows(range(start, start + 30), seed=start) for start in (100, 200, 300)]
    keys = [KEY, SegmentKey(2, "text", ENCODER), SegmentKey(3, "text", ENCODER)]
    distances = [float(exact_distances(rows.vectors, query).min()) for rows in parts]
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        index = index_of(*((keys[place], parts[i]) for place, i in enumerate(order)))
        asked = request(query, partitions=(TEXT, (2, "text"), (3, "text")), k=1, threshold=1e-6)
        result = index.search(asked)
        assert (result.matches, result.nearest_distance) == ((), pytest.approx(min(distances), abs=1e-6))


def test_match_at_the_threshold_needs_no_fallback():
    index = index_of((KEY, make_rows(range(30))), settings=config(candidate_count=5, candidates_per_result=1))
    asked = request(unit_vectors(1, seed=7)[0], k=1)
    nearest = index.search(asked).matches[0]
    result = index.search(changed(asked, threshold=nearest.cosine_distance))
    assert (result.matches, result.path) == ((nearest,), SearchPath.SCAN)


def deceptive_index():
    """Codes that lie: the row with the query's own vector has the farthest code."""
    query = unit_vectors(1, seed=7)[0]
    rows = make_rows(range(30))
    vectors, codes = rows.vectors.copy(), rows.codes.copy()
    vectors[17] = query.astype(np.float16)
    codes[17] = encode(-query[None])[0]
    rows = make_rows(range(30), vectors=vectors, codes=codes)
    index = index_of((KEY, rows), settings=config(candidate_count=5, candidates_per_result=1))
    worst = int(np.sort(hamming_distances(codes, encode(query[None])[0]))[4])
    return index, request(query, k=1, threshold=0.05), worst


@pytest.mark.parametrize("margin", [0, 1, 40])
def test_cut_scan_within_the_radius_falls_back_to_exact(margin):
    index, asked, worst = deceptive_index()
    result = index.search(changed(asked, radii={ENCODER: {CODE_BITS: worst + margin}}))
    assert (ids_of(result), result.path) == ([17], SearchPath.EXACT)


def test_cut_scan_without_a_radius_falls_back_to_exact():
    index, asked, _ = deceptive_index()
    assert ids_of(index.search(asked)) == [17]


def test_scan_beyond_the_radius_is_a_miss_without_fallback():
    index, asked, worst = deceptive_index()
    result = index.search(changed(asked, radii={ENCODER: {CODE_BITS: worst - 1}}))
    assert (result.matches, result.path) == ((), SearchPath.SCAN)


def test_match_in_another_segment_needs_no_fallback():
    index, asked, _ = deceptive_index()
    row = make_rows([99], vectors=asked.vector[None].astype(np.float16))
    index.apply(Changes(seq=2, upserts=((SegmentKey(2, "text", ENCODER), row),)))
    result = index.search(changed(asked, partitions=(TEXT, (2, "text"))))
    assert (ids_of(result), result.path) == ([99], SearchPath.SCAN)


def test_graph_that_reaches_mostly_dead_rows_falls_back_to_exact():
    rows = make_rows(range(400))
    query = unit_vectors(1, seed=7)[0]
    order = np.argsort(exact_distances(rows.vectors, query))
    index = VectorIndex(config(hnsw_ef_search=10), sealed=[sealed(rows, with_graph=True)])
    index.apply(Changes(seq=1, deleted_ids=rows.entry_ids[order[:100]]))
    result = index.search(request(query, path=SearchPath.HNSW, k=3))
    assert (ids_of(result), result.path) == (order[100:103].tolist(), SearchPath.EXACT)


def test_graph_with_enough_live_rows_does_not_fall_back():
    index = VectorIndex(config(hnsw_ef_search=10), sealed=[sealed(make_rows(range(400)), with_graph=True)])
    assert (
        index.search(request(unit_vectors(1, seed=7)[0], path=SearchPath.HNSW, k=3)).path is SearchPath.HNSW
    )


def test_planner_takes_the_graph_without_a_query_code():
    index = VectorIndex(config(exact_limit=99), sealed=[sealed(make_rows(range(100)), with_graph=True)])
    query = unit_vectors(1, seed=7)[0]
    assert index.search(request(query, codes={})).path is SearchPath.HNSW
    assert index.search(request(query)).path is SearchPath.SCAN


def test_segments_without_the_asked_path_take_their_own():
    index = VectorIndex(CONFIG, sealed=[sealed(make_rows(range(100)), with_graph=True)])
    query = unit_vectors(1, seed=7)[0]
    new = make_rows([500], vectors=query[None].astype(np.float16))
    index.apply(Changes(seq=1, upserts=((KEY, new),)))
    result = index.search(request(query, path=SearchPath.HNSW, k=1))
    assert (ids_of(result), result.path) == ([500], SearchPath.HNSW)


def test_path_that_no_segment_has_is_refused():
    index = index_of((KEY, make_rows(range(3))))
    with pytest.raises(PathUnavailableError, match="no graph"):
        index.search(request(unit_vectors(1, seed=0)[0], path=SearchPath.HNSW))
    with pytest.raises(PathUnavailableError, match="no inverted lists"):
        index.search(request(unit_vectors(1, seed=0)[0], path=SearchPath.IVF))
    with pytest.raises(PathUnavailableError, match="no threshold with radii"):
        index.search(request(unit_vectors(1, seed=0)[0], path=SearchPath.CASCADE))
    with pytest.raises(PathUnavailableError, match="no code"):
        index.search(request(unit_vectors(1, seed=0)[0], path=SearchPath.SCAN, codes={}))
