"""Matches bring copies of their stored vectors where they are asked for, from every kind of segment."""

import numpy as np
import pytest
from index_rows import (
    ALL_RADII,
    KEY,
    TEXT,
    changed,
    config,
    index_of,
    int64,
    make_rows,
    request,
    sealed,
    unit_vectors,
    varied_rows,
)

from index import Changes, SearchPath, SegmentKey, VectorIndex, read_segment, vector_index, write_segment

QUERIES = unit_vectors(6, seed=7)
NO_CODES = SegmentKey(3, "text", None)


@pytest.fixture
def stored(tmp_path):
    """Rows of a mapped file, with lists, growing ones and ones without codes; and all vectors by id."""
    mapped, listed = varied_rows(200, seed=1), varied_rows(200, seed=2, first_id=1_000)
    growing = varied_rows(100, seed=3, first_id=2_000)
    floats = varied_rows(60, seed=4, first_id=3_000, with_codes=False)
    write_segment(tmp_path / "one.segment", cache="c", key=KEY, rows=mapped)
    read = read_segment(tmp_path / "one.segment")
    segments = [sealed(read.rows), sealed(listed, list_count=7)]
    index = VectorIndex(config(cascade_min_rows=0, probe_count=7), sealed=segments)
    index.apply(Changes(seq=1, upserts=((KEY, growing), (NO_CODES, floats))))
    parts = (mapped, listed, growing, floats)
    ids = np.concatenate([rows.entry_ids for rows in parts])
    return index, dict(zip(ids.tolist(), np.concatenate([rows.vectors for rows in parts]), strict=True))


@pytest.mark.parametrize("path", [None, SearchPath.SCAN, SearchPath.EXACT, SearchPath.CASCADE])
def test_each_match_has_the_vector_of_its_row(stored, path):
    index, vectors = stored
    places = (TEXT,) if path is SearchPath.CASCADE else (TEXT, NO_CODES.partition)
    asked = [
        request(query, k=16, partitions=places, path=path, threshold=1.0, radii=ALL_RADII, with_vectors=True)
        for query in QUERIES
    ]
    for result in [index.search(asked[0]), *index.search_batch(asked)]:
        assert len(result.matches) == 16
        for match in result.matches:
            assert match.vector.dtype == np.float16
            assert np.array_equal(match.vector, vectors[match.entry_id])


def test_matches_have_no_vectors_unless_asked_for(stored):
    index, _ = stored
    found = index.search(request(QUERIES[0]))
    assert {match.vector is None for match in found.matches} == {True}
    with_vectors = index.search(request(QUERIES[0], with_vectors=True))
    assert [match[:-1] for match in with_vectors.matches] == [match[:-1] for match in found.matches]


def test_vectors_are_copies_that_outlive_their_rows(stored, monkeypatch):
    monkeypatch.setattr(vector_index, "COMPACT_MIN_DEAD", 0)
    index, vectors = stored
    found = index.search(request(QUERIES[0], k=16, with_vectors=True)).matches
    assert all(match.vector.base is None and match.vector.flags.owndata for match in found)
    index.apply(Changes(seq=2, deleted_ids=int64(*vectors)))
    index.drop_category(KEY.category_id)
    assert all(np.array_equal(match.vector, vectors[match.entry_id]) for match in found)


def test_rows_appended_meanwhile_leave_the_vectors_of_a_growing_segment():
    rows = make_rows(range(10), seed=5)
    index = index_of((KEY, rows))
    asked = request(QUERIES[0], k=10, with_vectors=True)
    before = index.search(asked).matches
    index.apply(Changes(seq=2, upserts=((KEY, make_rows(range(10, 200), seed=6)),)))
    after = index.search(changed(asked, k=200)).matches
    by_id = {match.entry_id: match.vector for match in after}
    assert all(np.array_equal(match.vector, by_id[match.entry_id]) for match in before)
