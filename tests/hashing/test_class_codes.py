import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import TrainingDataError, UnknownLabelError
from hashing.class_codes import RANDOM_POOL_WORDS, ClassCodes, check_labels, target_bits


def _issue(count: int, *, label_bits: int = 64, seed: int = 0) -> ClassCodes:
    return ClassCodes.empty(label_bits=label_bits, seed=seed).issue(f"l{number}" for number in range(count))


def _smallest_distance(bits: np.ndarray) -> int:
    signs = np.where(bits, 1, -1)
    distances = (bits.shape[1] - signs @ signs.T) // 2
    np.fill_diagonal(distances, bits.shape[1])
    return int(distances.min())


@pytest.mark.parametrize(("count", "share"), [(2, 1.0), (128, 32 / 64), (129, 28 / 64), (600, 28 / 64)])
def test_codes_keep_apart_in_every_word_and_prefix(count: int, share: float) -> None:
    bits = _issue(count, label_bits=192).bits
    for stop in (64, 128, 192):
        assert _smallest_distance(bits[:, stop - 64 : stop]) == share * 64
        assert _smallest_distance(bits[:, :stop]) >= share * stop


def test_codes_stay_distinct_beyond_the_kerdock_words_however_they_are_issued() -> None:
    codes = _issue(4300)
    assert _smallest_distance(codes.bits[:4096]) == 28
    assert _smallest_distance(codes.bits) >= 6
    batched = _issue(4095)
    for stop in (4097, 4150, 4300):
        batched = batched.issue(f"l{number}" for number in range(stop))
    assert np.array_equal(batched.bits, codes.bits)


def test_code_beyond_the_kerdock_words_is_the_random_one_farthest_from_all() -> None:
    bits = _issue(4099).bits
    for position in (4096, 4097, 4098):
        pool = np.random.default_rng((0, 0, position)).random((RANDOM_POOL_WORDS, 64)) < 0.5
        nearest = [min(np.count_nonzero(word ^ bits[:position], axis=1)) for word in pool]
        assert np.array_equal(bits[position], pool[int(np.argmax(nearest))])


@settings(max_examples=20, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_codes_depend_on_order_of_arrival_not_on_batches(labels: list[str], cut: int, seed: int) -> None:
    empty = ClassCodes.empty(label_bits=128, seed=seed)
    at_once = empty.issue(labels)
    in_two = empty.issue(labels[:cut]).issue(labels[cut:])
    assert at_once.labels == in_two.labels == tuple(dict.fromkeys(labels))
    np.testing.assert_array_equal(at_once.bits, in_two.bits)


def test_issuing_leaves_old_codes_untouched() -> None:
    old = _issue(40)
    new = old.issue(["l3", "fresh"])
    assert new.labels == (*old.labels, "fresh")
    np.testing.assert_array_equal(new.bits[:40], old.bits)


def test_issue_avoids_codes_that_another_seed_has_issued() -> None:
    foreign = ClassCodes(labels=_issue(100, seed=1).labels, bits=_issue(100, seed=1).bits, seed=2)
    assert _smallest_distance(foreign.issue(f"n{number}" for number in range(100)).bits) > 0


def test_seed_changes_the_codes() -> None:
    assert not np.array_equal(_issue(10, seed=0).bits, _issue(10, seed=1).bits)


def test_words_of_one_code_differ_in_their_draw() -> None:
    bits = _issue(20, label_bits=128).bits
    assert not np.array_equal(bits[:, :64], bits[:, 64:])


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from(["l0", "l1", "l2", "l3"]), min_size=1, max_size=6), max_size=12)
)
def test_target_is_the_sign_of_the_sum_with_ties_to_the_first_label(rows: list[list[str]]) -> None:
    codes = _issue(4)
    for row, target in zip(rows, target_bits(codes, rows), strict=True):
        own = list(dict.fromkeys(row))
        total = sum(np.where(codes.bits[codes.position(label)], 1, -1) for label in own)
        expected = np.where(total == 0, codes.bits[codes.position(own[0])], total > 0)
        np.testing.assert_array_equal(target, expected)


def test_unknown_label_is_named() -> None:
    with pytest.raises(UnknownLabelError) as caught:
        target_bits(_issue(3), [["l1"], ["l9"]])
    assert (caught.value.label, caught.value.known_count) == ("l9", 3)


def test_row_without_label_has_no_target() -> None:
    with pytest.raises(TrainingDataError, match="row 1 has no label"):
        target_bits(_issue(3), [["l1"], []])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"]], "1 label rows for 2 embeddings"),
        ([["a"], "abc"], "the string 'abc'"),
        ([["a"], [""]], "row 1 has the label ''"),
        ([["a"], [7]], "row 1 has the label 7"),
    ],
)
def test_labels_that_do_not_describe_the_rows_are_refused(labels, message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        check_labels(labels, row_count=2)
