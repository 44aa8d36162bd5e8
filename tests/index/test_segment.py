import threading

import numpy as np
import pytest
from index_rows import DIM, KEY, lists_of, make_rows, sealed

from index import (
    NEVER,
    TOMBSTONE,
    DimensionError,
    DuplicateEntryError,
    GrowingSegment,
    InvalidRowsError,
    Rows,
    SealedSegment,
    SegmentKey,
    VectorGraph,
)


def growing(rows, key=KEY):
    segment = GrowingSegment(key, dim=DIM, code_words=2, label_words=1)
    segment.append(rows)
    return segment


def with_lists(rows):
    """Sealed, with lists that leave the rows in their order, so that offsets are those of the rows."""
    return SealedSegment(KEY, rows, lists=lists_of([0, len(rows) // 2, len(rows)]))


@pytest.fixture(
    params=[growing, lambda rows: SealedSegment(KEY, rows), with_lists], ids=["growing", "sealed", "lists"]
)
def segment_of(request):
    return request.param


def fingerprints(*pairs):
    return np.array(pairs, dtype=np.uint64).reshape(-1, 2)


def ids(*values):
    return np.array(values, dtype=np.int64)


def test_view_holds_the_rows(segment_of):
    rows = make_rows(range(10, 40))
    view = segment_of(rows).view()
    for name, column in rows.columns.items():
        if name != "fingerprints":
            assert np.array_equal(getattr(view, name), column), name


def test_payload_belongs_to_its_row(segment_of):
    segment = segment_of(make_rows([3, 5, 9]))
    assert [segment.payload(offset) for offset in range(3)] == [
        b"payload of 3",
        b"payload of 5",
        b"payload of 9",
    ]


def test_locate_finds_present_ids_only(segment_of):
    segment = segment_of(make_rows([3, 5, 9]))
    assert segment.locate(ids(9, 4, 3, 1, 100)).tolist() == [2, -1, 0, -1, -1]


def test_tombstone_marks_rows_once(segment_of):
    segment = segment_of(make_rows([3, 5, 9]))
    assert segment.tombstone(ids(5, 7, 5)) == 1
    assert segment.tombstone(ids(5)) == 0
    assert segment.view().expire_times.tolist() == [NEVER, TOMBSTONE, NEVER]


def test_expire_times_move_but_never_revive(segment_of):
    segment = segment_of(make_rows([3, 5, 9]))
    segment.tombstone(ids(5))
    assert segment.set_expire_times(ids(5, 9, 7), ids(50, 90, 70)) == 1
    assert segment.view().expire_times.tolist() == [NEVER, TOMBSTONE, 90]


def test_expire_time_of_zero_is_refused(segment_of):
    with pytest.raises(InvalidRowsError):
        segment_of(make_rows([3])).set_expire_times(ids(3), ids(0))


def test_tombstone_does_not_change_the_rows_it_was_made_of(segment_of):
    rows = make_rows([3, 5])
    segment_of(rows).tombstone(ids(3))
    assert rows.expire_times.tolist() == [NEVER, NEVER]


def test_fingerprint_needs_both_words(segment_of):
    segment = segment_of(make_rows([1, 2, 3], fingerprints=fingerprints((7, 1), (7, 2), (8, 1))))
    found = [segment.find_fingerprint(key, now_ms=0) for key in [(7, 2), (7, 1), (8, 1), (8, 2), (1, 7)]]
    assert found == [1, 0, 2, None, None]


def test_fingerprint_words_use_all_64_bits(segment_of):
    top = 2**64 - 1
    segment = segment_of(make_rows([1, 2], fingerprints=fingerprints((top, top), (top, top - 1))))
    assert segment.find_fingerprint((top, top - 1), now_ms=0) == 1


def test_newest_live_row_of_a_fingerprint_is_found(segment_of):
    expire_times = ids(NEVER, 100, NEVER, 50)
    rows = make_rows([1, 2, 3, 4], fingerprints=fingerprints(*[(7, 7)] * 4), expire_times=expire_times)
    segment = segment_of(rows)
    assert segment.find_fingerprint((7, 7), now_ms=49) == 3
    assert segment.find_fingerprint((7, 7), now_ms=50) == 2
    segment.tombstone(ids(3))
    assert segment.find_fingerprint((7, 7), now_ms=99) == 1
    assert segment.find_fingerprint((7, 7), now_ms=100) == 0


def test_replaced_fingerprints_do_not_pile_up():
    segment = growing(make_rows([0], fingerprints=fingerprints((7, 7))))
    for entry_id in range(1, 50):
        segment.append(make_rows([entry_id], fingerprints=fingerprints((7, 7))))
        segment.tombstone(ids(entry_id - 1))
    assert max(len(offsets) for offsets in segment._fingerprints.values()) <= 2


def test_rows_without_encoder_have_no_codes():
    key = SegmentKey(1, "text", None)
    assert growing(make_rows([1, 2], with_codes=False), key).view().codes is None


def test_append_keeps_earlier_views_as_they_were():
    segment = growing(make_rows([1, 2]))
    earlier = segment.view()
    segment.append(make_rows(range(10, 200), seed=1))
    assert earlier.entry_ids.tolist() == [1, 2]
    assert segment.view().row_count == 192


def test_growth_keeps_rows_and_tombstones():
    segment = growing(make_rows(range(10)))
    segment.tombstone(ids(4))
    segment.append(make_rows(range(100, 300), seed=1))
    assert np.array_equal(segment.view().vectors[:10], make_rows(range(10)).vectors)
    assert segment.view().expire_times[4] == TOMBSTONE


def test_append_of_a_live_id_is_refused_whole():
    segment = growing(make_rows([1, 2]))
    with pytest.raises(InvalidRowsError, match="tombstone"):
        segment.append(make_rows([3, 2]))
    assert segment.view().row_count == 2


class TornPayloads:
    """As of a mapped file whose second row cannot be read."""

    def __len__(self):
        return 3

    def __getitem__(self, offset):
        if offset == 1:
            raise OSError("cannot be read")
        return b"never kept"


def test_append_whose_payloads_cannot_be_read_changes_nothing():
    segment = growing(make_rows([1, 2], fingerprints=fingerprints((5, 5), (6, 6))))
    torn = make_rows([3, 4, 5], seed=2, fingerprints=fingerprints((7, 7), (8, 8), (9, 9)))
    with pytest.raises(OSError, match="cannot be read"):
        segment.append(Rows.from_columns(torn.columns, payloads=TornPayloads()))
    assert segment.view().row_count == 2
    assert segment.locate(ids(3, 4, 5)).tolist() == [-1, -1, -1]
    assert segment.find_fingerprint((7, 7), now_ms=0) is None
    later = make_rows([3, 4], seed=3)
    segment.append(later)
    assert [segment.payload(offset) for offset in range(4)] == [b"payload of %d" % i for i in (1, 2, 3, 4)]
    rows = make_rows([1, 2]), later
    expected = sealed(make_rows([1, 2, 3, 4], codes=np.concatenate([part.codes for part in rows])))
    blocks = expected.view().table.blocks
    np.testing.assert_array_equal(segment.view().table.blocks[: len(blocks)], blocks)


def test_id_can_return_after_its_tombstone():
    segment = growing(make_rows([1, 2]))
    segment.tombstone(ids(1))
    segment.append(make_rows([1], seed=5))
    assert segment.locate(ids(1, 2)).tolist() == [2, 1]


def test_append_of_other_widths_is_refused():
    segment = growing(make_rows([1]))
    with pytest.raises(DimensionError):
        segment.append(make_rows([2], codes=np.zeros((1, 3), dtype=np.uint64)))


def test_sealed_rows_must_ascend():
    with pytest.raises(InvalidRowsError, match="ascend"):
        SealedSegment(KEY, make_rows([2, 1]))


def test_rows_of_lists_need_not_ascend_and_are_found_by_id():
    rows = make_rows(range(100, 400, 3), seed=3)
    keys = np.stack([rows.entry_ids, rows.entry_ids % 7], axis=1).astype(np.uint64)
    rows = Rows.from_columns(rows.columns | {"fingerprints": keys}, payloads=rows.payloads)
    segment = sealed(rows, list_count=9)
    stored = segment.view().entry_ids
    assert not np.array_equal(stored, rows.entry_ids)
    asked = np.array([5, 399, 397, 100, 101, 250, 1_000, 250])
    offsets = segment.locate(asked)
    assert (offsets < 0).tolist() == [entry_id not in rows.entry_ids for entry_id in asked.tolist()]
    assert stored[offsets[offsets >= 0]].tolist() == [397, 100, 250, 250]
    assert segment.payload(int(offsets[3])) == b"payload of 100"
    assert stored[segment.find_fingerprint((250, 250 % 7), now_ms=0)] == 250
    assert segment.tombstone(ids(250, 101, 250)) == 1
    assert stored[segment.view().expire_times == TOMBSTONE].tolist() == [250]
    taken = segment.rows(segment.locate(ids(397, 100)))
    expected = rows.take(np.searchsorted(rows.entry_ids, [397, 100]))
    for name, column in taken.columns.items():
        np.testing.assert_array_equal(column, expected.columns[name])
    assert taken.payloads == expected.payloads


@pytest.mark.parametrize("bounds", [[0, 5], [0, 3, 5]])
def test_lists_of_other_rows_are_refused(bounds):
    with pytest.raises(InvalidRowsError, match="lists"):
        SealedSegment(KEY, make_rows(range(6)), lists=lists_of(bounds))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 511, 513, 1_100])
def test_blocks_hold_the_codes_of_all_rows(count):
    rows = make_rows(range(count), seed=2)
    segment = GrowingSegment(KEY, dim=DIM, code_words=2, label_words=1)
    for start in range(0, count, 100):
        segment.append(rows.take(np.arange(start, min(start + 100, count))))
    expected = sealed(rows).view().table.blocks
    blocks = segment.view().table.blocks
    assert len(blocks) >= len(expected)
    np.testing.assert_array_equal(blocks[: len(expected)], expected)
    assert not blocks[len(expected) :].any()
    compacted = segment.compacted().view().table.blocks
    np.testing.assert_array_equal(compacted[: len(expected)], expected)


def test_sealed_segment_keeps_int8_vectors_in_memory():
    rows = make_rows(range(40))
    quantised = sealed(rows).view().table.quantised
    assert (quantised.dtype, quantised.shape) == (np.int8, rows.vectors.shape)
    assert growing(rows).view().table.quantised is None


def test_sealed_rows_without_encoder_have_no_blocks():
    key = SegmentKey(1, "text", None)
    rows = make_rows([1, 2], with_codes=False)
    assert SealedSegment(key, rows).view().table is None
    assert growing(rows, key).view().table is None
    with pytest.raises(InvalidRowsError, match="encoder"):
        SealedSegment(KEY, rows)


def test_graph_of_other_rows_is_refused():
    graph = VectorGraph.build(make_rows(range(4)).vectors)
    with pytest.raises(InvalidRowsError, match="graph"):
        SealedSegment(KEY, make_rows(range(5)), graph=graph)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("entry_ids", np.zeros(3, dtype=np.int32)),
        ("vectors", np.zeros((2, DIM), dtype=np.float16)),
        ("vectors", np.zeros((3, DIM), dtype=np.float32)),
        ("vectors", np.zeros(3, dtype=np.float16)),
        ("codes", np.zeros((3, 2), dtype=np.int64)),
        ("label_codes", np.zeros((2, 1), dtype=np.uint64)),
        ("label_mask", np.zeros(3, dtype=np.uint8)),
        ("scopes", np.zeros((3, 1), dtype=np.uint64)),
        ("fingerprints", np.zeros((3, 3), dtype=np.uint64)),
        ("expire_times", np.ones(4, dtype=np.int64)),
        ("payloads", [b""]),
    ],
)
def test_column_of_wrong_shape_or_dtype_is_named(name, array):
    columns = (
        {"vectors": make_rows([1, 2, 3]).vectors} | {"codes": make_rows([1, 2, 3]).codes} | {name: array}
    )
    with pytest.raises(DimensionError, match=f"^{name}: "):
        make_rows([1, 2, 3], **columns)


def test_repeated_ids_are_named():
    with pytest.raises(DuplicateEntryError) as caught:
        make_rows([4, 2, 4])
    assert caught.value.entry_ids == [4]


def test_rows_that_are_dead_from_the_start_are_refused():
    with pytest.raises(InvalidRowsError, match="expire_times"):
        make_rows([1], expire_times=ids(0))


def test_concatenate_and_take_keep_rows_together():
    joined = Rows.concatenate([make_rows([5, 1], seed=1), make_rows([3], seed=2)])
    taken = joined.take(np.argsort(joined.entry_ids))
    assert taken.entry_ids.tolist() == [1, 3, 5]
    assert [taken.payloads[i] for i in range(3)] == [b"payload of 1", b"payload of 3", b"payload of 5"]
    assert np.array_equal(taken.vectors[1], make_rows([3], seed=2).vectors[0])


def test_readers_never_see_a_torn_row():
    total, batch = 6000, 3
    segment = GrowingSegment(KEY, dim=4, code_words=2, label_words=1)
    torn: list[str] = []
    done = threading.Event()

    def numbered(start):
        entry_ids = np.arange(start, start + batch)
        digits = np.stack(
            [entry_ids // 1000, entry_ids // 100 % 10, entry_ids // 10 % 10, entry_ids % 10], axis=1
        )
        codes = np.stack([entry_ids, entry_ids + 1], axis=1).astype(np.uint64)
        return make_rows(entry_ids, vectors=digits.astype(np.float16), codes=codes)

    def read():
        while not done.is_set():
            view = segment.view()
            count = view.row_count
            if count % batch:
                torn.append(f"{count} rows of a batch of {batch}")
            if not np.array_equal(view.entry_ids, np.arange(count)):
                torn.append("ids")
            if not np.array_equal(view.vectors.astype(np.int64) @ [1000, 100, 10, 1], view.entry_ids):
                torn.append("vectors")
            if not np.array_equal(view.codes[:, 1].astype(np.int64), view.entry_ids + 1):
                torn.append("codes")
            if not np.all(view.expire_times == NEVER):
                torn.append("expire times")
            if count and segment.payload(count - 1) != f"payload of {count - 1}".encode():
                torn.append("payload")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for start in range(0, total, batch):
            segment.append(numbered(start))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert torn == []
