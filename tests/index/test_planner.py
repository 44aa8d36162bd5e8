import itertools

import pytest

from index import (
    IndexConfig,
    IndexConfigError,
    PathUnavailableError,
    QueryTraits,
    SearchPath,
    SegmentTraits,
    plan,
)
from index.list_margins import NEIGHBOURS, RECALLS
from index.planner import graph_falls_short, pass_rate, prefix_pass_rate, scan_proves_miss, unavailable

CONFIG = IndexConfig(
    exact_limit=100,
    scan_limit=1000,
    gather_limit=10,
    cascade_min_rows=40,
    cascade_max_pass_rate=0.02,
    list_recall=0.9,
    graph_recall=0.95,
    shared_scan_queries=4,
)
CASCADE, IVF, SCAN, HNSW, EXACT = SearchPath
SEGMENT = {
    "row_count": 50,
    "partition_row_count": 50,
    "has_codes": True,
    "has_query_code": True,
    "has_graph": False,
    "has_lists": False,
    "matching_share": 1.0,
    "prefix_pass_rate": None,
}
QUERY = {"k": 5, "allowed_count": None, "min_recall": 0.0, "query_count": 1}


def plan_for(requested=None, **facts):
    segment = SegmentTraits(**{name: facts.get(name, usual) for name, usual in SEGMENT.items()})
    query = QueryTraits(**{name: facts.get(name, usual) for name, usual in QUERY.items()})
    return plan(requested, segment=segment, query=query, config=CONFIG)


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
        ({"has_codes": False, "row_count": 101, "has_graph": True, "min_recall": 0.95}, HNSW),
        ({"has_codes": False, "row_count": 101, "has_graph": True, "min_recall": 0.96}, EXACT),
        # Lists of allowed ids, more recall than was measured.
        ({"allowed_count": 10}, EXACT),
        ({"allowed_count": 0}, EXACT),
        ({"allowed_count": 11}, SCAN),
        ({"allowed_count": 10, "has_query_code": False, "row_count": 101, "has_graph": True}, EXACT),
        ({"allowed_count": 10, "prefix_pass_rate": 0.0}, EXACT),
        ({"min_recall": 1.0, "prefix_pass_rate": 0.0, "has_lists": True, "has_graph": True}, EXACT),
        ({"min_recall": RECALLS[-1]}, SCAN),
        ({"min_recall": 0.9995}, EXACT),
        ({"min_recall": 0.9995, "prefix_pass_rate": 0.0, "has_lists": True, "has_graph": True}, EXACT),
        # Cascade.
        ({"prefix_pass_rate": 0.02}, CASCADE),
        ({"prefix_pass_rate": 0.021}, SCAN),
        ({"prefix_pass_rate": 0.0, "row_count": 40}, CASCADE),
        ({"prefix_pass_rate": 0.0, "row_count": 39}, SCAN),
        ({"prefix_pass_rate": 0.0, "has_query_code": False}, EXACT),
        ({"prefix_pass_rate": 0.0, "has_lists": True, "has_graph": True}, CASCADE),
        ({"prefix_pass_rate": 0.5, "has_lists": True}, IVF),
        # Lists.
        ({"has_lists": True}, IVF),
        ({"has_lists": True, "min_recall": 0.95}, IVF),  # whatever list_recall is
        ({"has_lists": True, "min_recall": RECALLS[-1]}, IVF),
        ({"has_lists": True, "k": NEIGHBOURS}, IVF),
        ({"has_lists": True, "k": NEIGHBOURS + 1}, SCAN),
        ({"has_lists": True, "matching_share": 0.5}, IVF),
        ({"has_lists": True, "matching_share": 0.49}, SCAN),
        ({"has_lists": True, "allowed_count": 11, "matching_share": 0.2}, SCAN),
        ({"has_lists": True, "matching_share": 0.01, "prefix_pass_rate": 0.0}, CASCADE),
        ({"has_lists": True, "has_graph": True, "partition_row_count": 1001, "k": NEIGHBOURS + 1}, SCAN),
        ({"has_lists": True, "query_count": 3}, IVF),
        ({"has_lists": True, "query_count": 4}, SCAN),
        ({"has_lists": True, "has_query_code": False}, EXACT),
        ({"has_lists": True, "has_graph": True, "partition_row_count": 1001}, IVF),
        ({"has_lists": True, "has_graph": True, "partition_row_count": 1001, "query_count": 4}, SCAN),
        # Graphs.
        ({"partition_row_count": 1000, "has_graph": True}, SCAN),
        ({"partition_row_count": 1001, "has_graph": True}, HNSW),
        ({"partition_row_count": 1001, "has_graph": True, "min_recall": 0.95}, HNSW),
        ({"partition_row_count": 1001, "has_graph": True, "min_recall": 0.96}, SCAN),
        ({"partition_row_count": 1001}, SCAN),
        # Requests.
        ({"requested": EXACT}, EXACT),
        ({"requested": SCAN, "partition_row_count": 1001, "has_graph": True}, SCAN),
        ({"requested": SCAN, "allowed_count": 1}, SCAN),
        ({"requested": HNSW, "has_graph": True}, HNSW),
        ({"requested": IVF, "has_lists": True, "query_count": 99, "min_recall": 1.0, "k": 99}, IVF),
        ({"requested": CASCADE, "prefix_pass_rate": 1.0, "row_count": 1}, CASCADE),
    ],
)
def test_rules(facts, path):
    assert plan_for(**facts) is path


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"requested": HNSW}, "graph"),
        ({"requested": SCAN, "has_codes": False}, "rows have no codes"),
        ({"requested": SCAN, "has_query_code": False}, "query has no code"),
        ({"requested": IVF}, "no inverted lists"),
        ({"requested": IVF, "has_lists": True, "has_query_code": False}, "query has no code"),
        ({"requested": CASCADE}, "no threshold with radii"),
        ({"requested": CASCADE, "prefix_pass_rate": 0.0, "has_codes": False}, "rows have no codes"),
    ],
)
def test_impossible_request_is_refused_with_its_reason(facts, reason):
    with pytest.raises(PathUnavailableError, match=reason):
        plan_for(**facts)


def test_planned_paths_are_available_whatever_the_traits():
    yes_no = (False, True)
    for codes, code, graph, lists in itertools.product(yes_no, repeat=4):
        for rate, rows, recall, queries in itertools.product(
            (None, 0.0, 1.0), (1, 5000), (0.0, 0.93, 1.0), (1, 9)
        ):
            facts = {"has_codes": codes, "has_query_code": code, "has_graph": graph, "has_lists": lists}
            facts |= {"prefix_pass_rate": rate, "row_count": rows, "partition_row_count": rows}
            for k, share in ((1, 1.0), (99, 1.0), (1, 0.1)):
                facts["matching_share"] = share
                path = plan_for(**facts, k=k, min_recall=recall, query_count=queries)
                assert unavailable(path, SegmentTraits(**(SEGMENT | facts))) is None


# What lets few rows through.


@pytest.mark.parametrize(("radius", "rate"), [(32, 0.5), (64, 1.0), (0, 0.0), (23, 0.02), (41, 0.98)])
def test_pass_rate_of_a_64_bit_prefix(radius, rate):
    assert pass_rate(radius, 64) == pytest.approx(rate, abs=0.005)


def test_pass_rate_grows_with_the_radius():
    rates = [pass_rate(radius, 128) for radius in range(129)]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("radii", "rate"),
    [
        (None, None),
        ({}, None),
        ({256: 3}, None),
        ({64: 3}, None),
        ({64: 12, 128: 20}, None),  # none of the whole code
        ({64: 12, 256: 40}, pass_rate(12, 64)),
        ({64: 12, 128: 60, 256: 40}, pass_rate(12, 64)),
        ({64: 30, 128: 30, 256: 250}, pass_rate(30, 128)),
    ],
)
def test_the_strictest_prefix_decides_and_the_whole_code_is_none(radii, rate):
    assert prefix_pass_rate(radii, code_bits=256) == rate


@pytest.mark.parametrize(
    ("wanted_count", "candidate_count", "worst", "radius", "proven"),
    [
        (5, 0, None, None, True),
        (5, 4, 3, None, True),
        (5, 4, 3, 9, True),
        (5, 5, 3, None, False),
        (5, 5, 9, 9, False),
        (5, 5, 10, 9, True),
        (5, 5, 8, 9, False),
        (0, 0, None, 9, False),
    ],
)
def test_cut_candidates_prove_a_miss_beyond_the_radius_only(
    wanted_count, candidate_count, worst, radius, proven
):
    assert proven is scan_proves_miss(
        wanted_count=wanted_count,
        candidate_count=candidate_count,
        worst_hamming_distance=worst,
        radius=radius,
    )


@pytest.mark.parametrize(
    ("live_count", "found_count", "k", "short"),
    [(10, 3, 3, False), (10, 2, 3, True), (2, 2, 3, False), (2, 1, 3, True), (0, 0, 3, False)],
)
def test_graph_falls_short_when_more_live_rows_exist(live_count, found_count, k, short):
    assert graph_falls_short(live_count=live_count, found_count=found_count, k=k) is short


def test_paths_are_ordered_by_cost():
    assert CASCADE.cost < IVF.cost < SCAN.cost < HNSW.cost < EXACT.cost


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
        ("list_recall", 1.01),
        ("graph_recall", -0.1),
        ("cascade_max_pass_rate", 1),
        ("cascade_min_rows", -1),
        ("probe_count", 0),
        ("rows_per_list", 0),
        ("lists_min_rows", 0),
        ("shared_scan_queries", 0),
        ("exact_count", 0),
        ("exact_per_result", True),
    ],
)
def test_invalid_configuration_names_its_key(key, value):
    with pytest.raises(IndexConfigError, match=f"^{key}: ") as caught:
        IndexConfig(**{key: value})
    assert caught.value.key == key


def test_candidates_grow_with_asked_results():
    config = IndexConfig(candidate_count=100, candidates_per_result=30)
    assert [config.candidates_for(k) for k in (1, 3, 4)] == [100, 100, 120]
    config = IndexConfig(exact_count=20, exact_per_result=3)
    assert [config.exact_for(k) for k in (1, 6, 7)] == [20, 20, 21]
