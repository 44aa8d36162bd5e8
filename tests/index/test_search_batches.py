"""A batch of searches answers as each search alone does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import (
    ALL_RADII,
    CODE_BITS,
    ENCODER,
    KEY,
    NOW,
    TEXT,
    changed,
    config,
    index_of,
    make_rows,
    request,
    sealed,
    unit_vectors,
    varied_rows,
)

from index import Changes, SearchPath, SegmentKey, VectorIndex

OTHER = SegmentKey(2, "text", ENCODER)
PARTITIONS = (TEXT, OTHER.partition, (3, "text"), (9, "text"))


@pytest.fixture(scope="module")
def mixed():
    """Four partitions of all kinds of segments, one of them without codes, with cut scans."""
    settings = config(
        candidate_count=20, candidates_per_result=5, probe_count=3, cascade_min_rows=0, exact_count=9
    )
    index = VectorIndex(
        settings,
        sealed=[
            sealed(varied_rows(300, seed=1), with_graph=True),
            sealed(varied_rows(300, seed=2, first_id=1_000), list_count=9),
            sealed(varied_rows(700, seed=3, first_id=2_000), key=OTHER),
        ],
    )
    no_codes = SegmentKey(3, "text", None)
    index.apply(
        Changes(
            seq=1,
            upserts=(
                (KEY, varied_rows(100, seed=4, first_id=3_000)),
                (OTHER, varied_rows(530, seed=5, first_id=4_000)),
                (SegmentKey(2, "text", "encoder-b"), varied_rows(60, seed=6, first_id=5_000)),
                (no_codes, varied_rows(60, seed=7, first_id=6_000, with_codes=False)),
            ),
            deleted_ids=np.arange(0, 7_000, 11),
        )
    )
    return index


ALLOWED = [None, None, np.arange(0, 7_000, 3), np.arange(2_000, 4_500)]
REQUESTS = st.builds(
    lambda seed, partitions, k, now_ms, scope, allowed, threshold, radii, min_recall, path, coded: request(
        unit_vectors(1, seed=seed)[0],
        partitions=tuple(partitions),
        k=k,
        now_ms=now_ms,
        scope=scope,
        allowed_ids=ALLOWED[allowed],
        threshold=threshold,
        radii=radii,
        min_recall=min_recall,
        path=path,
        **({} if coded else {"codes": {}}),
    ),
    st.integers(0, 10_000),
    st.lists(st.sampled_from(PARTITIONS), min_size=1, max_size=3),
    st.sampled_from([1, 5, 5, 5, 9]),
    st.sampled_from([NOW, NOW, NOW - 1]),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([None, 0.2, 0.5, 2.0]),
    st.sampled_from([{}, {ENCODER: {CODE_BITS: 15}}, {ENCODER: {64: 12, CODE_BITS: 20}}, ALL_RADII]),
    st.sampled_from([0.0, 0.0, 0.985, 1.0]),
    st.sampled_from([None, None, None, SearchPath.EXACT]),
    st.sampled_from([True, True, False]),
)


@settings(max_examples=150, deadline=None)
@given(asked=st.lists(REQUESTS, max_size=7))
def test_batch_answers_as_single_searches_do(mixed, asked):
    assert mixed.search_batch(asked) == [mixed.search(single) for single in asked]


@settings(max_examples=20, deadline=None)
@given(asked=st.lists(REQUESTS, min_size=8, max_size=60))
def test_large_batch_answers_as_single_searches_do_where_there_are_no_lists(mixed, asked):
    asked = [changed(single, partitions=(OTHER.partition, (3, "text"))) for single in asked]
    assert mixed.search_batch(asked) == [mixed.search(single) for single in asked]


def lists_alone():
    segment = sealed(make_rows(range(900)), list_count=9)
    return VectorIndex(config(gather_limit=0, probe_count=1), sealed=[segment])


@pytest.mark.parametrize(
    "differences",
    [
        [{"k": k} for k in range(1, 9)],
        [{"allowed_ids": np.arange(count)} for count in range(892, 900)],
        [{"now_ms": NOW + step} for step in range(8)],
        [{"scope": scope, "k": 3 + (scope is None)} for scope in (0, 0, 0, 0, None, None, None, None)],
    ],
)
def test_requests_that_cannot_share_a_pass_are_not_counted_as_sharing(differences):
    index = lists_alone()
    queries = unit_vectors(8, seed=3)
    asked = [request(query, **changes) for query, changes in zip(queries, differences, strict=True)]
    results = index.search_batch(asked)
    assert {result.path for result in results} == {SearchPath.IVF}
    assert results == [index.search(single) for single in asked]


@pytest.mark.parametrize("changes", [{}, {"scope": 0}, {"allowed_ids": np.arange(890)}])
def test_requests_that_share_a_pass_scan_instead_of_searching_lists(changes):
    index = lists_alone()
    asked = [request(query, **changes) for query in unit_vectors(8, seed=3)]
    assert {result.path for result in index.search_batch(asked[:7])} == {SearchPath.IVF}
    results = index.search_batch(asked)
    assert results == [index.search(changed(single, path=SearchPath.SCAN)) for single in asked]
    assert index.search_batch([*asked, changed(asked[0], k=3)])[8].path is SearchPath.IVF


def test_batch_with_one_invalid_request_answers_none(mixed):
    good = request(unit_vectors(1, seed=0)[0])
    with pytest.raises(ValueError, match="k:"):
        mixed.search_batch([good, changed(good, k=0)])


def test_empty_batch_has_no_answers(mixed):
    assert mixed.search_batch([]) == []


def test_each_request_of_a_batch_keeps_to_its_own_radii(mixed):
    queries = unit_vectors(6, seed=21)
    radii = [{64: limit, CODE_BITS: limit + 4} for limit in (3, 19, 8, 64, 15, 26)]
    asked = [
        request(
            query,
            partitions=(OTHER.partition,),
            path=SearchPath.CASCADE,
            threshold=2.0,
            radii={ENCODER: limits},
            k=9,
        )
        for query, limits in zip(queries, radii, strict=True)
    ]
    single = [mixed.search(one) for one in asked]
    assert mixed.search_batch(asked) == single
    assert mixed.search_batch(asked[::-1]) == single[::-1]
    assert len({result.candidates_examined for result in single}) > 2


@pytest.mark.parametrize("path", [None, SearchPath.SCAN, SearchPath.EXACT])
def test_allowed_rows_that_come_after_the_view_are_not_looked_for(monkeypatch, path):
    index = index_of((KEY, make_rows(range(20))), settings=config(gather_limit=0))
    views = VectorIndex._views

    def views_before_a_writer(self, partition):
        monkeypatch.undo()
        before = views(self, partition)
        self.apply(Changes(seq=2, upserts=((KEY, make_rows(range(100, 400), seed=2)),)))
        return before

    monkeypatch.setattr(VectorIndex, "_views", views_before_a_writer)
    asked = request(unit_vectors(1, seed=3)[0], allowed_ids=np.arange(15, 200), path=path, k=99)
    assert sorted(match.entry_id for match in index.search(asked).matches) == list(range(15, 20))
