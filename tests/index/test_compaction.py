"""Growing segments leave their dead rows behind, and searches that began before do not notice."""

import gc
import threading

import numpy as np
import pytest
from index_rows import (
    CONFIG,
    ENCODER,
    KEY,
    NOW,
    TEXT,
    ids_of,
    index_of,
    int64,
    make_rows,
    request,
    sealed,
    unit_vectors,
)

from index import Changes, SegmentKey, VectorIndex, vector_index
from index.growing_segment import GrowingSegment

OTHER = SegmentKey(2, "text", ENCODER)
QUERY = unit_vectors(1, seed=7)[0]


@pytest.fixture
def eager(monkeypatch):
    """Compaction as soon as there are more dead rows than live ones."""
    monkeypatch.setattr(vector_index, "COMPACT_MIN_DEAD", 0)


def row_count(index):
    return sum(view.row_count for _, view in index.segment_views())


def during_the_search(monkeypatch, change):
    """Run `change` once, after the search has taken its views and before it looks at expire times again."""
    pending = [change]
    merge = vector_index.merge_candidates

    def changed_before(*args, **kwargs):
        if pending:
            pending.pop()()
        return merge(*args, **kwargs)

    monkeypatch.setattr(vector_index, "merge_candidates", changed_before)


def test_memory_of_a_full_quota_is_bounded():
    index = VectorIndex(CONFIG)
    for entry_id in range(5_000):
        row = make_rows([entry_id], seed=entry_id, payloads=[bytes(10_000)])
        index.apply(Changes(seq=entry_id + 1, upserts=((KEY, row),), deleted_ids=int64(entry_id - 100)))
    most = vector_index.COMPACT_MIN_DEAD + 102
    assert index.live_ids().tolist() == list(range(4_900, 5_000))
    assert row_count(index) <= most
    (partition,) = index.facts().partitions
    assert sum(partition.sizes_bytes.values()) < most * 10_000 * 1.2


def test_few_dead_rows_are_left_where_they_are():
    index = index_of((KEY, make_rows(range(1_100))))
    index.apply(Changes(seq=2, deleted_ids=np.arange(vector_index.COMPACT_MIN_DEAD)))
    assert row_count(index) == 1_100
    index.apply(Changes(seq=3, deleted_ids=int64(1_050)))
    assert row_count(index) == 1_099 - vector_index.COMPACT_MIN_DEAD


def test_more_live_rows_than_dead_ones_are_not_copied(eager):
    index = index_of((KEY, make_rows(range(10))))
    index.apply(Changes(seq=2, deleted_ids=np.arange(5)))
    assert row_count(index) == 10


def test_replaced_rows_are_compacted_too(eager):
    index = index_of((KEY, make_rows(range(4))))
    for seq in range(2, 30):
        index.apply(Changes(seq=seq, upserts=((KEY, make_rows([seq % 4], seed=seq)),)))
    assert row_count(index) <= 9
    assert index.live_ids().tolist() == [0, 1, 2, 3]


def test_compacted_rows_are_the_same_in_the_same_order(eager):
    keys = np.array([[7, 8], [7, 9], [7, 8], [0, 0], [7, 8]], dtype=np.uint64)
    rows = make_rows([9, 2, 7, 4, 1], fingerprints=keys, scopes=np.arange(5, dtype=np.uint64))
    index = index_of((KEY, rows))
    index.apply(Changes(seq=2, deleted_ids=int64(2, 7, 1)))
    ((key, found),) = index.rows_of(np.arange(10))
    ((_, view),) = index.segment_views()
    expected = rows.take(np.array([3, 0]))
    assert (key, view.entry_ids.tolist(), found.payloads) == (KEY, [9, 4], expected.payloads)
    for name, column in found.columns.items():
        np.testing.assert_array_equal(column, expected.columns[name])
    assert index.find_fingerprint(TEXT, (7, 8), now_ms=NOW).entry_id == 9
    assert index.find_fingerprint(TEXT, (7, 9), now_ms=NOW) is None


def test_a_segment_whose_rows_all_died_takes_rows_again(eager):
    index = index_of((KEY, make_rows([1, 2])), deleted_ids=int64(1, 2))
    assert (row_count(index), ids_of(index.search(request(QUERY)))) == (0, [])
    index.apply(Changes(seq=2, upserts=((KEY, make_rows([3])),)))
    assert ids_of(index.search(request(QUERY))) == [3]


def test_expire_times_move_after_compaction(eager):
    index = index_of((KEY, make_rows([1, 2, 3])), deleted_ids=int64(1, 2))
    index.apply(Changes(seq=2, expire_ids=int64(1, 3), expire_times=int64(NOW + 5, NOW + 5)))
    assert ids_of(index.search(request(QUERY, now_ms=NOW + 4))) == [3]
    assert ids_of(index.search(request(QUERY, now_ms=NOW + 5))) == []


def test_a_category_is_dropped_after_compaction(eager):
    index = index_of((KEY, make_rows([1, 2, 3])), (OTHER, make_rows([4])), deleted_ids=int64(1, 2))
    index.drop_category(1)
    index.apply(Changes(seq=2, deleted_ids=int64(3)))
    assert (index.live_ids().tolist(), index.partitions) == ([4], ((2, "text"),))


def test_other_segments_of_the_partition_stay_in_their_order(eager):
    index = VectorIndex(CONFIG, sealed=[sealed(make_rows([1, 2, 3]))])
    second = SegmentKey(1, "text", "encoder-b")
    index.apply(Changes(seq=1, upserts=((KEY, make_rows([4, 5, 6])), (second, make_rows([7])))))
    index.apply(Changes(seq=2, deleted_ids=int64(1, 4, 5)))
    assert [(key, view.entry_ids.tolist()) for key, view in index.segment_views()] == [
        (KEY, [1, 2, 3]),
        (KEY, [6]),
        (second, [7]),
    ]


def test_a_search_does_not_return_both_versions_of_a_row_that_moved_after_compaction(eager, monkeypatch):
    index = index_of((KEY, make_rows([1, 2, 3])), (OTHER, make_rows([4])))
    views = VectorIndex._views

    def views_beside_a_writer(self, partition):
        if partition != TEXT:
            return views(self, partition)
        monkeypatch.undo()
        before = views(self, partition)
        vector_index.COMPACT_MIN_DEAD, usual = 0, vector_index.COMPACT_MIN_DEAD
        index.apply(Changes(seq=2, deleted_ids=int64(1, 2)))
        vector_index.COMPACT_MIN_DEAD = usual
        index.apply(Changes(seq=3, upserts=((OTHER, make_rows([3], payloads=[b"new"])),)))
        return before

    monkeypatch.setattr(VectorIndex, "_views", views_beside_a_writer)
    matches = index.search(request(QUERY, partitions=(TEXT, OTHER.partition))).matches
    assert sorted((match.entry_id, match.payload) for match in matches) == [(3, b"new"), (4, b"payload of 4")]


def test_a_search_drops_a_row_that_dies_twice_compacted(eager, monkeypatch):
    index = index_of((KEY, make_rows(range(8))))

    def change():
        index.apply(Changes(seq=2, deleted_ids=np.arange(5)))
        index.apply(Changes(seq=3, deleted_ids=int64(5, 6)))
        index.apply(Changes(seq=4, deleted_ids=int64(7)))

    during_the_search(monkeypatch, change)
    assert ids_of(index.search(request(QUERY, k=8))) == []


def test_a_search_drops_a_row_that_expires_after_its_segment_was_compacted(eager, monkeypatch):
    index = index_of((KEY, make_rows(range(8))))

    def change():
        index.apply(Changes(seq=2, deleted_ids=np.arange(5)))
        index.apply(Changes(seq=3, expire_ids=int64(5, 6), expire_times=int64(NOW, NOW)))

    during_the_search(monkeypatch, change)
    assert ids_of(index.search(request(QUERY, k=8))) == [7]


def test_the_replaced_segment_goes_with_its_last_reader(eager):
    index = index_of((KEY, make_rows(range(8))), deleted_ids=np.arange(5))
    index.apply(Changes(seq=2, deleted_ids=int64(5)))
    gc.collect()
    growing = [found for found in gc.get_objects() if type(found) is GrowingSegment]
    assert sum(segment in index._all_segments() for segment in growing) == 1
    assert index._still_read() == []


@pytest.mark.parametrize("moves", [False, True])
def test_searches_beside_a_compacting_writer(eager, moves):
    """Never a row twice, never one that was deleted before, and always the row that stays."""
    stays = make_rows([0], vectors=QUERY[None].astype(np.float16))
    index = index_of((KEY, stays), (KEY, make_rows(range(1, 21))))
    deleted_below = [0]
    wrong: list[object] = []
    done = threading.Event()

    def read():
        while not done.is_set():
            floor = deleted_below[0]
            asked = request(QUERY, partitions=(TEXT, OTHER.partition), k=60)
            found = ids_of(index.search(asked))
            if len(set(found)) != len(found) or 0 not in found or any(0 < i < floor for i in found):
                wrong.append((floor, found))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for seq in range(2, 600):
            new = make_rows([seq + 19], seed=seq)
            moved = ((OTHER if seq % 2 else KEY, make_rows([seq + 10], seed=seq)),) if moves else ()
            upserts = ((KEY, new), *moved)
            index.apply(Changes(seq=seq, upserts=upserts, deleted_ids=int64(seq - 1)))
            deleted_below[0] = seq
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert row_count(index) < 70
