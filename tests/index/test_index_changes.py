import threading

import numpy as np
import pytest
from index_rows import (
    CODE_BITS,
    CONFIG,
    DIM,
    ENCODER,
    KEY,
    LABEL_BITS,
    NOW,
    TEXT,
    config,
    ids_of,
    index_of,
    int64,
    make_rows,
    nearest_ids,
    request,
    sealed,
    unit_vectors,
    varied_rows,
)

from index import (
    Changes,
    DimensionError,
    InvalidRowsError,
    SegmentKey,
    StaleChangesError,
    VectorIndex,
    pack,
    unpack,
)

# Changes.


def test_upsert_of_a_known_id_replaces_it_in_any_segment():
    rows = make_rows(range(10))
    index = VectorIndex(CONFIG, sealed=[sealed(rows)], watermark=3)
    query = unit_vectors(1, seed=7)[0]
    moved = make_rows([4], vectors=query[None].astype(np.float16), payloads=[b"new"])
    index.apply(Changes(seq=4, upserts=((SegmentKey(2, "text", ENCODER), moved),)))
    assert 4 not in ids_of(index.search(request(query, k=20)))
    found = index.search(request(query, partitions=((2, "text"),))).matches
    assert [(match.entry_id, match.payload) for match in found] == [(4, b"new")]
    assert index.live_ids().tolist() == list(range(10))


def test_later_upsert_of_the_same_step_wins():
    index = index_of((KEY, make_rows([1], payloads=[b"a"])), (KEY, make_rows([1], seed=2, payloads=[b"b"])))
    matches = index.search(request(unit_vectors(1, seed=0)[0])).matches
    assert [match.payload for match in matches] == [b"b"]


def test_id_both_upserted_and_deleted_ends_deleted():
    index = index_of((KEY, make_rows([1, 2])), deleted_ids=int64(1, 77))
    assert index.live_ids().tolist() == [2]


def test_expire_times_apply_to_rows_of_the_same_step():
    index = index_of((KEY, make_rows([1, 2])), expire_ids=int64(1, 77), expire_times=int64(NOW, NOW))
    assert ids_of(index.search(request(unit_vectors(1, seed=0)[0]))) == [2]


def test_row_is_live_until_its_expire_time():
    index = index_of((KEY, make_rows([1], expire_times=int64(NOW))))
    query = unit_vectors(1, seed=0)[0]
    assert ids_of(index.search(request(query, now_ms=NOW - 1))) == [1]
    assert ids_of(index.search(request(query, now_ms=NOW))) == []


@pytest.mark.parametrize("seq", [6, 7])
def test_stale_changes_are_refused_and_change_nothing(seq):
    index = index_of((KEY, make_rows([1])), seq=7)
    with pytest.raises(StaleChangesError):
        index.apply(Changes(seq=seq, deleted_ids=int64(1)))
    assert (index.live_ids().tolist(), index.applied_seq) == ([1], 7)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"upserts": ((KEY, make_rows([2], vectors=np.full((1, DIM), np.nan, np.float16))),)},
            InvalidRowsError,
        ),
        ({"upserts": ((KEY, make_rows([2], codes=np.full((1, 2), 2**63, np.uint64))),)}, InvalidRowsError),
        ({"upserts": ((KEY, make_rows([2], with_codes=False)),)}, InvalidRowsError),
        ({"upserts": ((KEY, make_rows([-2])),)}, InvalidRowsError),
        ({"upserts": ((KEY, make_rows([2], codes=np.zeros((1, 3), np.uint64))),)}, DimensionError),
        ({"upserts": ((KEY, make_rows([2], label_codes=np.zeros((1, 2), np.uint64))),)}, DimensionError),
        ({"expire_ids": int64(1), "expire_times": int64(1, 2)}, DimensionError),
        ({"expire_ids": int64(1), "expire_times": int64(0)}, InvalidRowsError),
    ],
)
def test_invalid_changes_are_refused_whole(changes, error):
    index = index_of((KEY, make_rows([1])))
    good = (KEY, make_rows([3], seed=1))
    with pytest.raises(error):
        index.apply(Changes(seq=2, **(changes | {"upserts": (good, *changes.get("upserts", ()))})))
    assert (index.live_ids().tolist(), index.applied_seq) == ([1], 1)


def test_other_dimension_in_a_modality_is_refused():
    index = index_of((KEY, make_rows([1])))
    other = make_rows(
        [2], vectors=unit_vectors(1, seed=1, dim=5).astype(np.float16), codes=make_rows([1]).codes
    )
    with pytest.raises(DimensionError, match="vectors"):
        index.apply(Changes(seq=2, upserts=((SegmentKey(9, "text", ENCODER), other),)))
    index.apply(Changes(seq=2, upserts=((SegmentKey(9, "image", ENCODER), other),)))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"vector": unit_vectors(1, seed=0, dim=5)[0]}, DimensionError),
        ({"vector": unit_vectors(1, seed=0)[0].astype(np.float64)}, DimensionError),
        ({"vector": np.full(DIM, np.nan, np.float32)}, ValueError),
        ({"codes": {ENCODER: np.zeros(3, np.uint64)}}, DimensionError),
        ({"codes": {ENCODER: np.array([0, 1 << (CODE_BITS - 64)], np.uint64)}}, ValueError),
        ({"codes": {ENCODER: np.array([0, 1 << 63], np.uint64)}}, ValueError),
        ({"k": 0}, ValueError),
        ({"now_ms": -1}, ValueError),
        ({"min_recall": np.nan}, ValueError),
        ({"threshold": np.nan}, ValueError),
        ({"threshold": -1e-9}, ValueError),
        ({"radii": {ENCODER: {64: -1, CODE_BITS: 9}}}, ValueError),
        ({"radii": {ENCODER: {64: 65, CODE_BITS: 70}}}, ValueError),
        ({"radii": {ENCODER: {CODE_BITS: CODE_BITS + 1}}}, ValueError),
        ({"radii": {ENCODER: {CODE_BITS + 1: 3}}}, ValueError),
        ({"radii": {ENCODER: {}, "encoder-b": {-1: -1}}}, ValueError),
    ],
)
def test_invalid_request_is_refused(changes, error):
    index = index_of((KEY, make_rows([1])))
    with pytest.raises(error):
        index.search(request(unit_vectors(1, seed=0)[0], **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": {ENCODER: np.array([2**64 - 1, (1 << (CODE_BITS - 64)) - 1], np.uint64)}},
        {"threshold": 0.0},
        {"threshold": np.inf},
        {"threshold": 0.0, "radii": {ENCODER: {64: 0, CODE_BITS: 0}}},
        {"threshold": 0.0, "radii": {ENCODER: {64: 64, CODE_BITS: CODE_BITS}, "encoder-b": {}}},
    ],
)
def test_request_at_the_edge_of_what_is_valid_is_answered(changes):
    vector = make_rows([1]).vectors[0].astype(np.float32)
    result = index_of((KEY, make_rows([1]))).search(request(vector, **changes))
    assert result.nearest_distance == pytest.approx(0, abs=1e-6)


def test_dropped_category_is_gone_and_others_stay():
    index = index_of((KEY, make_rows([1])), (SegmentKey(2, "text", ENCODER), make_rows([2])))
    index.drop_category(1)
    index.drop_category(77)
    assert index.live_ids().tolist() == [2]
    assert index.live_ids(TEXT).tolist() == []


def test_dropped_modality_may_come_again_with_another_dimension():
    index = index_of((KEY, make_rows([1])), (SegmentKey(1, "image", ENCODER), make_rows([2])))
    index.drop_modality("text")
    index.drop_modality("sound")
    assert index.live_ids().tolist() == [2]
    other = make_rows(
        [3], vectors=unit_vectors(1, seed=1, dim=5).astype(np.float16), codes=make_rows([1]).codes
    )
    index.apply(Changes(seq=2, upserts=((KEY, other),)))
    assert index.live_ids(TEXT).tolist() == [3]


# Fingerprints.


def test_fingerprint_is_found_in_its_partition_only():
    rows = make_rows([1, 2], fingerprints=np.array([[7, 8], [7, 9]], dtype=np.uint64))
    index = index_of((KEY, rows))
    match = index.find_fingerprint(TEXT, (7, 9), now_ms=NOW)
    assert (match.entry_id, match.cosine_distance, match.payload) == (2, 0.0, b"payload of 2")
    assert index.find_fingerprint((2, "text"), (7, 9), now_ms=NOW) is None
    assert index.find_fingerprint(TEXT, (8, 7), now_ms=NOW) is None


def test_no_fingerprint_matches_nothing():
    index = index_of((KEY, make_rows([1])))
    assert index.find_fingerprint(TEXT, (0, 0), now_ms=NOW) is None


@pytest.mark.parametrize("sealed_id", [4, 90])
def test_highest_id_of_a_fingerprint_in_several_segments_is_found(sealed_id):
    key = np.array([[7, 8]], dtype=np.uint64)
    index = VectorIndex(CONFIG, sealed=[sealed(make_rows([sealed_id], fingerprints=key))])
    index.apply(Changes(seq=1, upserts=((KEY, make_rows([50], fingerprints=key)),)))
    assert index.find_fingerprint(TEXT, (7, 8), now_ms=NOW).entry_id == max(50, sealed_id)


@pytest.mark.parametrize("list_count", [0, 12])
def test_highest_id_of_a_fingerprint_is_found_whatever_the_order_of_the_rows(list_count):
    ids = np.arange(100, 400)
    keys = np.stack([ids % 5, ids % 3], axis=1).astype(np.uint64)  # some share their first word only
    index = VectorIndex(
        CONFIG, sealed=[sealed(make_rows(ids, seed=4, fingerprints=keys), list_count=list_count)]
    )
    for key in np.unique(keys[keys.any(axis=1)], axis=0).tolist():
        same = ids[(keys == key).all(axis=1)]
        assert index.find_fingerprint(TEXT, tuple(key), now_ms=NOW).entry_id == same[-1]
    index.apply(Changes(seq=1, deleted_ids=same[-2:]))
    assert index.find_fingerprint(TEXT, tuple(key), now_ms=NOW).entry_id == same[-3]


def test_dead_fingerprints_are_not_found():
    rows = make_rows(
        [1, 2], fingerprints=np.array([[7, 8], [7, 9]], dtype=np.uint64), expire_times=int64(NOW, NOW + 9)
    )
    index = VectorIndex(CONFIG, sealed=[sealed(rows)])
    index.apply(Changes(seq=1, deleted_ids=int64(2)))
    assert index.find_fingerprint(TEXT, (7, 8), now_ms=NOW) is None
    assert index.find_fingerprint(TEXT, (7, 9), now_ms=NOW) is None


# Class retrieval.


@pytest.mark.parametrize("scope", [None, 1])
@pytest.mark.parametrize("allowed", [None, int64(*range(0, 400, 3))])
def test_label_search_equals_brute_force(allowed, scope):
    first, second = varied_rows(150, seed=1), varied_rows(150, seed=2, first_id=200)
    index = VectorIndex(CONFIG, sealed=[sealed(first)])
    index.apply(Changes(seq=1, upserts=((KEY, second.take(np.arange(150)[::-1])),)))
    values = np.random.default_rng(5).standard_normal(LABEL_BITS).astype(np.float32)
    result = index.search_labels(
        partitions=[TEXT], values=values, k=40, now_ms=NOW, scope=scope, allowed_ids=allowed
    )
    ids = np.concatenate([first.entry_ids, second.entry_ids])
    bits = unpack(np.concatenate([first.label_codes, second.label_codes]), bit_count=LABEL_BITS)
    signs = np.where(bits, 1.0, -1.0)
    distances = 1 - signs @ values / (np.linalg.norm(values) * np.sqrt(LABEL_BITS))
    live = np.concatenate([(rows.expire_times > NOW) & rows.label_mask for rows in (first, second)])
    if allowed is not None:
        live &= np.isin(ids, allowed)
    if scope is not None:
        live &= np.concatenate([first.scopes, second.scopes]) == scope
    expected = nearest_ids(ids, np.round(distances, 5), k=40, live=live)
    assert ids_of(result) == expected
    offsets = [ids.tolist().index(entry_id) for entry_id in expected]
    np.testing.assert_allclose(
        [match.cosine_distance for match in result.matches], distances[offsets], atol=1e-5
    )


@pytest.mark.parametrize("segment_count", [1, 2])
def test_scores_that_are_one_distance_are_ranked_by_entry_id(segment_count):
    """Of these codes the later has the higher score, by less than a distance near 1 can tell."""
    bits = np.zeros((2, LABEL_BITS), dtype=np.bool_)
    bits[:, 0] = bits[1, 2] = True
    rows = make_rows([5, 9], label_codes=pack(bits), label_mask=np.ones(2, np.bool_))
    values = np.zeros(LABEL_BITS, dtype=np.float32)
    values[:3] = 1, 1, 1e-9
    parts = [[0, 1]] if segment_count == 1 else [[1], [0]]
    index = VectorIndex(CONFIG, sealed=[sealed(rows.take(int64(*part))) for part in parts])
    result = index.search_labels(partitions=[TEXT], values=values, k=2, now_ms=NOW)
    assert [(match.cosine_distance, match.entry_id) for match in result.matches] == [(1.0, 5), (1.0, 9)]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros(LABEL_BITS, np.float32), ValueError),
        (np.full(LABEL_BITS, np.inf, np.float32), ValueError),
        (np.ones(LABEL_BITS - 1, np.float32), DimensionError),
        (np.ones(LABEL_BITS, np.float64), DimensionError),
    ],
)
def test_invalid_label_values_are_refused(values, error):
    with pytest.raises(error):
        VectorIndex(CONFIG).search_labels(partitions=[TEXT], values=values, k=1, now_ms=NOW)


def test_label_search_without_label_bits_is_refused():
    with pytest.raises(DimensionError):
        VectorIndex(config(label_bits=0)).search_labels(
            partitions=[TEXT], values=np.empty(0, np.float32), k=1, now_ms=NOW
        )


# Facts and threads.


def test_facts_count_rows_tombstones_and_encoders():
    index = VectorIndex(
        CONFIG, sealed=[sealed(make_rows(range(10)), with_graph=True)], generation="gen-00000001"
    )
    other = SegmentKey(1, "text", "encoder-b")
    index.apply(Changes(seq=1, upserts=((other, make_rows([3, 50])),), deleted_ids=int64(7)))
    facts = index.facts()
    (partition,) = facts.partitions
    assert (facts.generation, facts.applied_seq) == ("gen-00000001", 1)
    assert (partition.row_count, partition.live_count, partition.tombstone_count) == (12, 10, 2)
    assert partition.encoder_ids == (ENCODER, "encoder-b")
    assert [(part.is_sealed, part.has_graph, part.row_count) for part in partition.segments] == [
        (True, True, 10),
        (False, False, 2),
    ]
    assert partition.segments[0].sizes_bytes["vectors"] == 10 * DIM * 2
    assert sum(partition.sizes_bytes.values()) == sum(
        sum(part.sizes_bytes.values()) for part in partition.segments
    )


def test_partitions_and_their_encoders_are_listed():
    index = index_of(
        (KEY, make_rows([1])),
        (SegmentKey(1, "text", "encoder-b"), make_rows([2])),
        (SegmentKey(2, "text", None), make_rows([3], with_codes=False)),
    )
    assert set(index.partitions) == {(1, "text"), (2, "text")}
    assert index.encoder_ids([TEXT]) == {ENCODER, "encoder-b"}
    assert index.encoder_ids([(2, "text"), (9, "text")]) == frozenset()


def test_segment_views_hold_every_row_under_its_key():
    other = SegmentKey(2, "text", None)
    index = VectorIndex(CONFIG, sealed=[sealed(make_rows([1, 4]))])
    index.apply(Changes(seq=1, upserts=((other, make_rows([9], with_codes=False)),)))
    assert {key: view.entry_ids.tolist() for key, view in index.segment_views()} == {KEY: [1, 4], other: [9]}


def test_searches_beside_a_writer_never_return_both_versions_of_a_row():
    index = index_of((KEY, make_rows(range(20))))
    query = unit_vectors(1, seed=7)[0]
    wrong: list[list[int]] = []
    done = threading.Event()

    def read():
        while not done.is_set():
            found = ids_of(index.search(request(query, k=60)))
            if len(set(found)) != len(found):
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for seq in range(2, 500):
            key = SegmentKey(1, "text", f"encoder-{seq % 4}")
            index.apply(Changes(seq=seq, upserts=((key, make_rows([seq % 20], seed=seq)),)))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert index.live_ids().tolist() == list(range(20))
