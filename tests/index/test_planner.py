import pytest

from index import IndexConfig, IndexConfigError, PathUnavailableError, SearchPath, plan
from index.planner import graph_falls_short, scan_proves_miss

CONFIG = IndexConfig(exact_limit=100, scan_limit=1000, gather_limit=10)
SCAN, HNSW, EXACT = SearchPath.SCAN, SearchPath.HNSW, SearchPath.EXACT


def plan_for(requested=None, **facts):
    usual = {
        "row_count": 50,
        "partition_row_count": 50,
        "has_codes": True,
        "has_query_code": True,
        "has_graph": False,
        "allowed_count": None,
    }
    return plan(requested, **(usual | facts), config=CONFIG)


@pytest.mark.parametrize(
    ("facts", "path"),
    [
        ({}, SCAN),
        ({"has_graph": True}, SCAN),
        ({"has_query_code": False}, EXACT),
        ({"has_codes": False}, EXACT),
        ({"has_query_code": False, "row_count": 101}, EXACT),
        ({"has_query_code": False, "row_count": 100, "has_graph": True}, EXACT),
        ({"has_query_code": False, "row_count": 101, "has_graph": True}, HNSW),
        ({"has_codes": False, "row_count": 101, "has_graph": True}, HNSW),
        ({"allowed_count": 10}, EXACT),
        ({"allowed_count": 0}, EXACT),
        ({"allowed_count": 11}, SCAN),
        ({"allowed_count": 10, "has_query_code": False, "row_count": 101, "has_graph": True}, EXACT),
        ({"partition_row_count": 1000, "has_graph": True}, SCAN),
        ({"partition_row_count": 1001, "has_graph": True}, HNSW),
        ({"partition_row_count": 1001}, SCAN),
        ({"requested": EXACT}, EXACT),
        ({"requested": SCAN, "partition_row_count": 1001, "has_graph": True}, SCAN),
        ({"requested": SCAN, "allowed_count": 1}, SCAN),
        ({"requested": HNSW, "has_graph": True}, HNSW),
    ],
)
def test_rules(facts, path):
    assert plan_for(**facts) is path


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"requested": HNSW}, "graph"),
        ({"requested": SCAN, "has_codes": False}, "no codes"),
        ({"requested": SCAN, "has_query_code": False}, "query has no code"),
    ],
)
def test_impossible_request_is_refused_with_its_reason(facts, reason):
    with pytest.raises(PathUnavailableError, match=reason):
        plan_for(**facts)


@pytest.mark.parametrize(
    ("live_count", "candidate_count", "worst", "radius", "proven"),
    [
        (0, 0, None, None, True),
        (5, 5, 3, None, True),
        (6, 5, 3, None, False),
        (6, 5, 9, 9, False),
        (6, 5, 10, 9, True),
        (6, 5, 8, 9, False),
    ],
)
def test_cut_candidates_prove_a_miss_beyond_the_radius_only(
    live_count, candidate_count, worst, radius, proven
):
    assert proven is scan_proves_miss(
        live_count=live_count, candidate_count=candidate_count, worst_hamming_distance=worst, radius=radius
    )


@pytest.mark.parametrize(
    ("live_count", "found_count", "k", "short"),
    [(10, 3, 3, False), (10, 2, 3, True), (2, 2, 3, False), (2, 1, 3, True), (0, 0, 3, False)],
)
def test_graph_falls_short_when_more_live_rows_exist(live_count, found_count, k, short):
    assert graph_falls_short(live_count=live_count, found_count=found_count, k=k) is short


def test_paths_are_ordered_by_cost():
    assert SCAN.cost < HNSW.cost < EXACT.cost


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("code_bits", 63),
        ("code_bits", 1025),
        ("label_bits", 1),
        ("exact_limit", -1),
        ("candidate_count", 0),
        ("hnsw_m", 1),
        ("hnsw_ef_search", 0),
        ("code_bits", 64.0),
    ],
)
def test_invalid_configuration_names_its_key(key, value):
    with pytest.raises(IndexConfigError, match=f"^{key}: ") as caught:
        IndexConfig(**{key: value})
    assert caught.value.key == key


def test_candidates_grow_with_asked_results():
    config = IndexConfig(candidate_count=100, candidates_per_result=30)
    assert [config.candidates_for(k) for k in (1, 3, 4)] == [100, 100, 120]
