"""Every search path over every kind of segment that has it, against brute force."""

import numpy as np
import pytest
from index_rows import (
    ALL_RADII,
    CODE_BITS,
    ENCODER,
    KEY,
    NOW,
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

from index import Changes, SearchPath, VectorIndex, hamming_distances
from index.list_margins import NEIGHBOURS, RECALLS
from index.vectors import unit_rows

CASCADE, IVF, SCAN, HNSW, EXACT = SearchPath
KINDS = {
    "growing": (CASCADE, SCAN, EXACT),
    "sealed": (CASCADE, SCAN, EXACT),
    "graph": (CASCADE, SCAN, HNSW, EXACT),
    "lists": (CASCADE, IVF, SCAN, EXACT),
}
PATHS = [(kind, path) for kind, paths in KINDS.items() for path in paths]
SEES_ALL = config(
    candidate_count=2_000, exact_count=64, hnsw_ef_search=300, probe_count=100, cascade_min_rows=0
)


def index_over(kind, rows, *, settings=SEES_ALL):
    if kind == "growing":
        return index_of((KEY, rows), settings=settings, seq=1)
    list_count = min(len(rows), 9) if kind == "lists" else 0
    segment = sealed(rows, with_graph=kind == "graph", list_count=list_count)
    return VectorIndex(settings, sealed=[segment], watermark=1)


@pytest.mark.parametrize(("kind", "path"), PATHS)
@pytest.mark.parametrize("count", [1, 2, 63, 300, 1_100])
def test_every_path_equals_brute_force_when_it_sees_all_rows(kind, path, count):
    rows = varied_rows(count, seed=count)
    index = index_over(kind, rows)
    for scope in (None, 1):
        for allowed_ids in (None, np.arange(0, count + 50, 2), np.arange(0)):
            live = (rows.expire_times > NOW) & ((rows.scopes == 1) | (scope is None))
            if allowed_ids is not None:
                live &= np.isin(rows.entry_ids, allowed_ids)
            query = unit_vectors(1, seed=7 + count)[0]
            asked = request(query, path=path, scope=scope, allowed_ids=allowed_ids, k=6)
            result = index.search(changed(asked, threshold=2.0, radii=ALL_RADII))
            distances = exact_distances(rows.vectors, query)
            assert ids_of(result) == nearest_ids(rows.entry_ids, distances, k=6, live=live)
            assert result.path is path or path in (IVF, HNSW)  # too few live rows: searched again


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_paths_report_the_same_matches(kind, path):
    rows = make_rows(range(200))
    query = unit_vectors(1, seed=7)[0]
    asked = request(query, threshold=2.0, radii=ALL_RADII)
    matches = index_over(kind, rows).search(changed(asked, path=path)).matches
    assert matches == index_over("growing", rows).search(changed(asked, path=EXACT)).matches
    expected = hamming_distances(rows.codes[[match.entry_id for match in matches]], encode(query[None])[0])
    assert [match.hamming_distance for match in matches] == expected.tolist()
    assert [match.payload for match in matches] == [rows.payloads[match.entry_id] for match in matches]


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_changes_after_sealing_show_on_every_path(kind, path):
    rows = make_rows(range(400))
    index = index_over(kind, rows)
    query = unit_vectors(1, seed=7)[0]
    order = np.argsort(exact_distances(rows.vectors, query))
    asked = request(query, threshold=2.0, radii=ALL_RADII, path=path, k=3)
    assert ids_of(index.search(asked)) == order[:3].tolist()
    index.apply(Changes(seq=2, deleted_ids=order[:1], expire_ids=order[1:2], expire_times=np.array([NOW])))
    assert ids_of(index.search(asked)) == order[2:5].tolist()
    new = make_rows([order[3], 900], vectors=np.stack([-query, query]).astype(np.float16))
    index.apply(Changes(seq=3, upserts=((KEY, new),)))
    assert ids_of(index.search(asked)) == [900, order[2], order[4]]


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, path in PATHS if path not in (HNSW, EXACT)]
)
def test_rows_that_died_after_sealing_take_no_place_among_the_candidates(kind, path):
    rows = make_rows(range(400))
    settings = config(candidate_count=9, candidates_per_result=1, probe_count=100, cascade_min_rows=0)
    index = index_over(kind, rows, settings=settings)
    query = unit_vectors(1, seed=7)[0]
    asked = request(query, radii=ALL_RADII, threshold=2.0, path=path, k=9)
    dead = ids_of(index.search(asked))
    index.apply(
        Changes(
            seq=2, deleted_ids=np.array(dead[:5]), expire_ids=np.array(dead[5:]), expire_times=np.full(4, NOW)
        )
    )
    result = index.search(asked)
    assert (len(result.matches), result.path) == (9, path)
    assert not set(ids_of(result)) & set(dead)


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_query_in_any_memory_order_is_read_right(kind, path):
    index = index_over(kind, make_rows(range(200)))
    queries = unit_vectors(3, seed=7)
    asked = request(queries[1], threshold=2.0, radii=ALL_RADII, path=path)
    codes = np.repeat(asked.codes[ENCODER], 2)[::2]
    strided = changed(asked, vector=np.asfortranarray(queries)[1], codes={ENCODER: codes})
    assert not strided.vector.flags.c_contiguous
    assert index.search(strided) == index.search(asked)


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_infinite_threshold_holds_every_row(kind, path):
    index = index_over(kind, make_rows(range(200)))
    asked = request(unit_vectors(1, seed=7)[0], threshold=2.0, radii=ALL_RADII, path=path, k=9)
    assert index.search(changed(asked, threshold=np.inf)) == index.search(asked)


# Cascade.


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.7, 2.0])
def test_cascade_whose_radii_hold_everything_equals_brute_force_within_the_threshold(threshold):
    rows = varied_rows(900, seed=4)
    live = rows.expire_times > NOW
    index = index_over("sealed", rows)
    for query in unit_vectors(5, seed=9):
        asked = request(query, path=CASCADE, threshold=threshold, radii=ALL_RADII, k=30)
        distances = exact_distances(rows.vectors, query)
        expected = nearest_ids(rows.entry_ids, distances, k=30, live=live & (distances <= threshold))
        assert ids_of(index.search(asked)) == expected


def test_planner_takes_the_cascade_where_the_radii_are_tight():
    index = index_over("sealed", make_rows(range(100)))
    query = unit_vectors(1, seed=7)[0]
    asked = request(query, threshold=0.3, radii={ENCODER: {64: 12, CODE_BITS: 20}})
    assert index.search(asked).path is CASCADE
    assert index.search(changed(asked, threshold=None)).path is SCAN
    assert index.search(changed(asked, radii={ENCODER: {CODE_BITS: 20}})).path is SCAN
    assert index.search(changed(asked, radii=ALL_RADII)).path is SCAN
    assert index.search(changed(asked, min_recall=1.0)).path is EXACT


def test_planner_takes_the_lists_for_few_queries():
    index = index_over("lists", make_rows(range(100)))
    query = unit_vectors(1, seed=7)[0]
    assert index.search(request(query)).path is IVF
    assert {result.path for result in index.search_batch([request(query)] * 7)} == {IVF}
    assert {result.path for result in index.search_batch([request(query)] * 8)} == {SCAN}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"k": NEIGHBOURS}, IVF),
        ({"k": NEIGHBOURS + 1}, SCAN),
        ({"min_recall": RECALLS[-1]}, IVF),
        ({"min_recall": 0.9995}, EXACT),
        ({"allowed_ids": np.arange(3, 63)}, IVF),
        ({"allowed_ids": np.arange(3, 23)}, SCAN),
    ],
)
def test_planner_leaves_the_lists_where_their_margins_say_nothing(changes, path):
    settings = config(gather_limit=0, probe_count=1, candidate_count=2_000, list_recall=0.0)
    index = index_over("lists", make_rows(range(100)), settings=settings)
    assert index.search(request(unit_vectors(1, seed=7)[0], **changes)).path is path


def test_search_of_a_rare_scope_scans_and_equals_brute_force():
    count = 3_000
    scopes = np.random.default_rng(6).choice(np.array([7, 8, 9], np.uint64), count, p=[0.01, 0.6, 0.39])
    rows = make_rows(range(count), scopes=scopes)
    index = index_over("lists", rows, settings=config(probe_count=1))
    for query in unit_vectors(5, seed=8):
        distances = exact_distances(rows.vectors, query)
        expected = nearest_ids(rows.entry_ids, distances, k=5, live=scopes == 7)
        rare = index.search(request(query, scope=7))
        assert (ids_of(rare), rare.path) == (expected, SCAN)
        assert index.search(request(query, scope=8)).path is IVF


def test_lists_that_hold_too_few_rows_of_a_scope_are_left_for_a_scan():
    spread = unit_vectors(6_000, seed=1) * 0.3 + unit_vectors(40, seed=2)[np.arange(6_000) % 40]
    scopes = np.arange(6_000, dtype=np.uint64) // 3_000
    rows = make_rows(range(6_000), scopes=scopes, vectors=unit_rows(spread).astype(np.float16))
    query = rows.vectors[0].astype(np.float32)
    settings = config(probe_count=1, list_recall=0.0, candidate_count=6_000)
    index = index_over("lists", rows, settings=settings)
    asked = request(query, path=IVF, k=5)
    near = index.search(asked)
    assert near.path is IVF
    assert near.candidates_examined < 3_000
    in_scope = index.search(changed(asked, scope=1))
    assert in_scope.path is IVF
    enough = in_scope.candidates_examined
    assert index.search(changed(asked, scope=1, k=enough)).path is IVF
    rare = index.search(changed(asked, scope=1, k=enough + 1))
    assert (len(rare.matches), rare.path, rare.candidates_examined) == (enough + 1, SCAN, 3_000)


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_a_query_whose_values_lie_apart_in_memory_finds_the_same(kind, path):
    rows = varied_rows(1_100, seed=3)
    index = index_over(kind, rows)
    query = unit_vectors(1, seed=4)[0]
    apart = np.repeat(query, 2)[::2]
    assert not apart.flags.c_contiguous
    asked = request(query, path=path, threshold=0.9, radii=ALL_RADII)
    assert index.search(changed(asked, vector=apart)) == index.search(asked)


@pytest.mark.parametrize("threshold", [1.0, 1.5, 2.0, np.inf])
def test_lists_are_all_searched_for_a_threshold_that_no_margin_was_measured_for(threshold):
    index = index_over("lists", varied_rows(300, seed=5))
    query = unit_vectors(1, seed=6)[0]
    asked = request(query, path=IVF, k=5, threshold=threshold)
    assert ids_of(index.search(asked)) == ids_of(index.search(changed(asked, path=EXACT)))


def test_the_least_recall_of_lists_is_that_of_the_first_margin():
    rows = varied_rows(6_000, seed=7)
    index = index_over("lists", rows, settings=config(probe_count=1, list_recall=0.0, candidate_count=6_000))
    lists = index_over("lists", rows, settings=config(probe_count=1, list_recall=0.9, candidate_count=6_000))
    for query in unit_vectors(20, seed=8):
        asked = request(query, path=IVF, k=5)
        assert index.search(asked) == lists.search(asked)
