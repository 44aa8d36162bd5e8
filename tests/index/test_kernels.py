"""Searches of bit-sliced codes against brute force, on every instruction set of the machine."""

from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index import NEVER, TOMBSTONE, _kernels, nearest_codes
from index.codes import code_bytes
from index.kernels import (
    BLOCK_ROWS,
    MAX_CODE_WORDS,
    PREFIX_BITS,
    aligned_zeros,
    append_codes,
    empty_blocks,
)

SETS = _kernels.instruction_sets()
NOW = 1_000  # ms
SCOPES = np.array([0, 7, 2**32 + 7, 2**64 - 1], dtype=np.uint64)
ROW_COUNTS = st.one_of(
    st.sampled_from([0, 1, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 1100]), st.integers(0, 1100)
)
WORDS = st.one_of(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16]), st.integers(1, MAX_CODE_WORDS))


@pytest.fixture(autouse=True)
def best_set_again():
    yield
    _kernels.choose(_kernels.instruction_sets()[-1])


@pytest.fixture(params=SETS)
def each_set(request):
    _kernels.choose(request.param)
    return request.param


def slice_codes(codes, *, capacity=0):
    blocks = empty_blocks(max(len(codes), capacity), code_words=codes.shape[1])
    append_codes(blocks, codes, row_count=0)
    return blocks


def random_codes(rng, count, words):
    return rng.integers(0, 2**64, (count, words), dtype=np.uint64)


def similar_codes(rng, count, words, *, flips=20):
    """Few distinct codes, each with a few bits changed: ties and near codes are common."""
    centres = random_codes(rng, 5, words)
    codes = centres[rng.integers(0, 5, count)]
    for bit in rng.integers(0, 64 * words, flips):
        changed = rng.random(count) < 0.3
        codes[changed, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return codes


def differing_bits(codes, query):
    return np.bitwise_count(codes ^ query).sum(axis=1, dtype=np.int64)


@dataclass
class Case:
    codes: NDArray[np.uint64]
    queries: NDArray[np.uint64]
    expire_times: NDArray[np.int64]
    count: int = 5
    options: dict[str, Any] = field(default_factory=dict)

    def found(self, blocks=None):
        """Per query [(distance, row)], and as it was returned."""
        blocks = slice_codes(self.codes) if blocks is None else blocks
        returned = nearest_codes(
            blocks, self.queries, count=self.count, expire_times=self.expire_times, now_ms=NOW, **self.options
        )
        offsets, distances, found = returned
        assert (offsets.dtype, distances.dtype, found.dtype) == (np.int64, np.int32, np.int64)
        assert offsets.shape == distances.shape
        return [
            list(zip(distances[i, : found[i]].tolist(), offsets[i, : found[i]].tolist(), strict=True))
            for i in range(len(self.queries))
        ]

    def expected(self):
        options = self.options
        rows = np.arange(len(self.codes))
        taken = self.expire_times > NOW
        if options.get("allowed") is not None:
            taken = taken & options["allowed"]
        if options.get("spans") is not None:
            inside = np.zeros(len(rows), dtype=np.bool_)
            for start, stop in options["spans"].tolist():
                inside[start:stop] = True
            taken = taken & inside
        results = []
        for i, query in enumerate(self.queries):
            chosen = taken.copy()
            exact = differing_bits(self.codes, query)
            if options.get("scopes") is not None:
                chosen &= options["scopes"] == options["query_scopes"][i]
            if options.get("max_distances") is not None:
                chosen &= exact <= options["max_distances"][i]
            if options.get("prefix_limits") is not None:
                for bits, limit in zip(PREFIX_BITS, options["prefix_limits"][i].tolist(), strict=False):
                    words = bits // 64
                    chosen &= differing_bits(self.codes[:, :words], query[:words]) <= limit
            results.append(
                sorted(zip(exact[chosen].tolist(), rows[chosen].tolist(), strict=True))[: self.count]
            )
        return results


def prefix_count(words):
    return sum(bits < 64 * words for bits in PREFIX_BITS)


@st.composite
def spans_of(draw, row_count):
    """Ragged, adjacent, inside one block, over several, or none."""
    edges = draw(st.lists(st.integers(0, row_count), max_size=10))
    edges = sorted(edges)[: len(edges) // 2 * 2]
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


@st.composite
def cases(draw, *, row_counts=ROW_COUNTS, words=WORDS, similar=True):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    word_count, row_count = draw(words), draw(row_counts)
    query_count = draw(st.integers(1, 9))
    make = similar_codes if similar else random_codes
    codes = make(rng, row_count + query_count, word_count)
    dead_share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    expire_times = rng.choice([TOMBSTONE, NOW - 1, NOW], row_count)
    alive = rng.random(row_count) >= dead_share
    expire_times[alive] = rng.choice([NOW + 1, NEVER], int(alive.sum()))
    case = Case(codes[:row_count], codes[row_count:], expire_times)
    case.count = draw(st.one_of(st.integers(1, 20), st.integers(1, row_count + 10)))
    options = case.options
    if draw(st.booleans()):
        options["scopes"] = rng.choice(SCOPES, row_count)
        options["query_scopes"] = rng.choice(SCOPES, query_count)
    if draw(st.booleans()):
        options["allowed"] = rng.random(row_count) < draw(st.sampled_from([0.0, 0.1, 0.9]))
    if draw(st.booleans()):
        options["spans"] = draw(spans_of(row_count))
    bits = 64 * word_count
    if draw(st.booleans()):
        highest = draw(st.sampled_from([-1, 0, 3, 10, bits // 3, bits]))
        options["max_distances"] = rng.integers(-1, highest + 1, query_count, dtype=np.int32)
    if draw(st.booleans()):
        shape = (query_count, prefix_count(word_count))
        options["prefix_limits"] = rng.integers(-1, draw(st.sampled_from([1, 12, 30, 130])), shape, np.int32)
    return case


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=250, deadline=None)
@given(case=cases())
def test_nearest_codes_equal_brute_force(name, case):
    _kernels.choose(name)
    assert case.found() == case.expected()


@settings(max_examples=60, deadline=None)
@given(case=cases(similar=False))
def test_nearest_of_unrelated_codes_equal_brute_force_on_every_set(case):
    found = []
    for name in SETS:
        _kernels.choose(name)
        found.append(case.found())
    assert found == [case.expected()] * len(SETS)


@pytest.mark.parametrize("words", range(1, MAX_CODE_WORDS + 1))
@pytest.mark.parametrize("ones", [0, 1, None])
def test_extreme_codes_have_exact_distances_at_every_width(each_set, words, ones):
    """Every bit differs, or none, or one: each counter is carried to its end."""
    full = np.uint64(2**64 - 1)
    codes = np.zeros((3, words), dtype=np.uint64)
    codes[1] = full
    codes[2, -1] = np.uint64(2**63)
    query = np.full((1, words), 0 if ones == 0 else full, dtype=np.uint64)
    if ones == 1:
        query[0, 1:] = 0
    case = Case(codes, query, np.full(3, NEVER), count=3)
    assert case.found() == case.expected()


@pytest.mark.parametrize("words", [1, 4, 6, 16])
def test_nearest_codes_equal_faiss(each_set, words):
    rng = np.random.default_rng(words)
    codes, queries = random_codes(rng, 3_000, words), random_codes(rng, 7, words)
    oracle = faiss.IndexBinaryFlat(64 * words)
    oracle.add(code_bytes(codes))
    expected, _ = oracle.search(code_bytes(queries), 100)
    found = Case(codes, queries, np.full(3_000, NEVER), count=100).found()
    assert [[distance for distance, _ in part] for part in found] == expected.tolist()
    counted, _ = faiss.knn_hamming(code_bytes(queries), code_bytes(codes), 100)
    assert np.array_equal(np.sort(counted, axis=1), expected)


@pytest.mark.parametrize(("bits", "limit"), [(64, 63), (64, 62), (128, 127), (128, 126)])
def test_limits_just_below_the_length_of_a_prefix_hold(each_set, bits, limit):
    """Only a limit of the whole length holds every row."""
    query = random_codes(np.random.default_rng(6), 1, 4)
    codes = np.repeat(query, 4, axis=0)
    codes[:3, : bits // 64] ^= np.uint64(2**64 - 1)
    codes[1, 0] ^= np.uint64(1)
    codes[2, 0] ^= np.uint64(3)
    case = Case(codes, query, np.full(4, NEVER))
    limits = np.array([[limit if bits == 64 else 64, limit if bits == 128 else 128]], dtype=np.int32)
    case.options["prefix_limits"] = limits
    expected = case.expected()
    assert case.found() == expected
    assert len(expected[0]) == (3 if limit == bits - 1 else 2)


# Many candidates: the collector trims, or samples first.


@pytest.mark.parametrize("order", ["descending", "ascending", "random"])
@pytest.mark.parametrize("count", [31, 32, 300, 3_000])
@pytest.mark.parametrize("query_count", [1, 3])
def test_many_candidates_equal_brute_force(each_set, order, count, query_count):
    row_count, words = 20_000, 2
    rng = np.random.default_rng(count)
    codes, queries = random_codes(rng, row_count, words), random_codes(rng, query_count, words)
    by_distance = np.argsort(differing_bits(codes, queries[0]), kind="stable")
    if order != "random":
        codes = codes[by_distance if order == "ascending" else by_distance[::-1]]
    expire_times = rng.choice([NOW, NEVER], row_count, p=[0.1, 0.9])
    case = Case(np.ascontiguousarray(codes), queries, expire_times, count=count)
    expected = case.expected()
    assert case.found() == expected
    # One span of all rows is sampled, several are not.
    case.options["spans"] = np.array([[0, 9_999], [9_999, 9_999], [9_999, row_count]], dtype=np.int64)
    assert case.found() == expected


def test_sample_that_promised_too_much_is_searched_again(each_set):
    """The sampled blocks, one in sixteen, hold near codes only; the others hold far ones."""
    row_count, count = 200 * BLOCK_ROWS, 1_500
    rng = np.random.default_rng(0)
    query = random_codes(rng, 1, 1)
    codes = np.repeat(~query, row_count, axis=0)
    near = np.arange(row_count) % (16 * BLOCK_ROWS) < 80
    codes[near] = query
    case = Case(codes, query, np.full(row_count, NEVER), count=count)
    found = case.found()
    assert found == case.expected()
    assert {distance for distance, _ in found[0]} == {0, 64}


@pytest.mark.parametrize("limit", [20, 64])
def test_sampled_search_stays_within_the_maximal_distance(each_set, limit):
    rng = np.random.default_rng(1)
    codes, queries = similar_codes(rng, 40_000, 1), random_codes(rng, 2, 1)
    case = Case(codes, np.concatenate([codes[:1], queries]), np.full(40_000, NEVER), count=200)
    case.options["max_distances"] = np.array([limit, limit - 1, 3], dtype=np.int32)
    assert case.found() == case.expected()


def test_many_queries_stream_many_blocks(each_set):
    """Enough bytes and queries that blocks are prefetched."""
    rng = np.random.default_rng(2)
    codes, queries = random_codes(rng, 70_000, 5), random_codes(rng, 6, 5)
    case = Case(codes, queries, np.full(70_000, NEVER), count=3)
    assert case.found() == case.expected()


# Appends.


@settings(max_examples=60, deadline=None)
@given(words=WORDS, batch_sizes=st.lists(st.integers(0, 600), max_size=6), seed=st.integers(0, 999))
def test_appends_in_any_batches_give_the_same_blocks(words, batch_sizes, seed):
    codes = random_codes(np.random.default_rng(seed), sum(batch_sizes), words)
    whole = slice_codes(codes)
    parts = empty_blocks(len(codes), code_words=words)
    start = 0
    for size in batch_sizes:
        append_codes(parts, codes[start : start + size], row_count=start)
        start += size
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("row_count", [0, 1, 511, 512, 513])
def test_rows_behind_the_searched_ones_are_not_found(each_set, row_count):
    rng = np.random.default_rng(3)
    codes = random_codes(rng, 1_600, 4)
    codes[row_count:] = codes[0]
    case = Case(codes[:row_count], codes[:1], np.full(row_count, NEVER), count=1_600)
    assert case.found(slice_codes(codes)) == case.expected()


@pytest.mark.parametrize("capacity", [1, 512, 513, 100_000])
def test_blocks_start_at_a_cache_line_and_have_room(capacity):
    blocks = empty_blocks(capacity, code_words=3)
    assert (len(blocks), blocks.ctypes.data % 64) == (-(-capacity // BLOCK_ROWS), 0)
    assert not blocks.any()


def test_large_zeros_are_writable_and_separate():
    first, second = (aligned_zeros((3, 1 << 20), np.uint16) for _ in range(2))
    first[:] = 7
    assert first.flags.c_contiguous
    assert not second.any()


def test_no_queries_find_nothing():
    codes = random_codes(np.random.default_rng(0), 5, 2)
    offsets, distances, found = nearest_codes(
        slice_codes(codes), codes[:0], count=3, expire_times=np.full(5, NEVER), now_ms=NOW
    )
    assert (offsets.shape, distances.shape, found.shape) == ((0, 3), (0, 3), (0,))


def test_queries_in_any_memory_order_are_read_right(each_set):
    rng = np.random.default_rng(4)
    codes = random_codes(rng, 100, 4)
    queries = random_codes(rng, 6, 4)
    plain = Case(codes, queries, np.full(100, NEVER)).found()
    assert Case(codes, np.asfortranarray(queries), np.full(100, NEVER)).found() == plain
    strided = np.repeat(queries, 2, axis=0)[::2]
    assert Case(codes, strided, np.full(100, NEVER)).found() == plain
    blocks = empty_blocks(100, code_words=4)
    append_codes(blocks, np.asfortranarray(codes), row_count=0)
    np.testing.assert_array_equal(blocks, slice_codes(codes))
