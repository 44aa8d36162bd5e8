"""The nearest rows of those with the nearest codes, against brute force, on every instruction set."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import axis_distances, exact_distances, lists_of, make_margins, unit_vectors
from numpy.typing import NDArray

from index import NEVER, TOMBSTONE, DimensionError, _kernels, cosine_distances
from index.kernels import BLOCK_ROWS, PREFIX_BITS, append_codes, empty_blocks, quantise
from index.lists import InvertedLists
from index.search_table import SearchTable
from index.vectors import unit_rows

SETS = _kernels.instruction_sets()
NOW = 1_000  # ms
NORMS = [1.0, 2.0**-120, 2.0**100]


@pytest.fixture(autouse=True)
def best_set_again():
    yield
    _kernels.choose(_kernels.instruction_sets()[-1])


@pytest.fixture(params=SETS)
def each_set(request):
    _kernels.choose(request.param)
    return request.param


def table_of(columns, *, with_bytes=True):
    """A table of these columns, whose blocks have room for more rows."""
    codes = columns["codes"]
    blocks = empty_blocks(len(codes) + BLOCK_ROWS, code_words=codes.shape[1])
    append_codes(blocks, codes, row_count=0)
    quantised = quantise(columns["vectors"]) if with_bytes else None
    return SearchTable(blocks=blocks, quantised=quantised, **columns)


def similar_codes(rng, count, words, *, flips=12):
    """Few distinct codes, each with a few bits changed: ties are common."""
    codes = rng.integers(0, 2**64, (3, words), dtype=np.uint64)[rng.integers(0, 3, count)]
    for bit in rng.integers(0, 64 * words, flips):
        changed = rng.random(count) < 0.3
        codes[changed, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return codes


def make_columns(rng, row_count, *, vectors, words=2, dead_share=0.2):
    """The columns of a table; its ids are in no order."""
    times = np.where(rng.random(row_count) < dead_share, rng.choice([TOMBSTONE, NOW], row_count), NEVER)
    return {
        "codes": similar_codes(rng, row_count, words),
        "vectors": vectors,
        "entry_ids": rng.permutation(3 * row_count)[:row_count],
        "scopes": rng.integers(0, 3, row_count).astype(np.uint64),
        "expire_times": times,
    }


@dataclass
class Case:
    """Rows of small integers and queries that are axes: brute force gives the kernels' very bits."""

    columns: dict[str, NDArray[Any]]
    codes: NDArray[np.uint64]  # of the queries
    axes: list[int]
    norm: float = 1.0
    count: int = 9
    exact_count: int = 3
    with_bytes: bool = True
    lists: InvertedLists | None = None
    least: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def queries(self):
        dim = self.columns["vectors"].shape[1]
        return np.float32(self.norm) * np.eye(dim, dtype=np.float32)[self.axes]

    @property
    def choice(self):
        return None if self.lists is None else self.lists.near(least=self.least, recall=0.9)

    def found(self):
        return table_of(self.columns, with_bytes=self.with_bytes).nearest_rows(
            self.codes,
            self.queries,
            count=self.count,
            exact_count=self.exact_count,
            now_ms=NOW,
            lists=self.choice,
            **self.options,
        )

    def expected(self):
        return [self._expected(i) for i in range(len(self.codes))]

    def _expected(self, i):
        codes, vectors, ids = (self.columns[name] for name in ("codes", "vectors", "entry_ids"))
        bits = np.bitwise_count(codes ^ self.codes[i])
        taken = self._taken(i, bits)
        candidates = sorted((int(bits[row].sum()), row) for row in np.flatnonzero(taken).tolist())
        candidates = candidates[: self.count]
        kept = candidates
        if self.with_bytes:
            rough = axis_distances(quantise(vectors), self.axes[i])
            kept = sorted(candidates, key=lambda candidate: rough[candidate[1]])[: self.exact_count]
        exact = axis_distances(vectors, self.axes[i])
        rows = sorted((float(exact[row]), int(ids[row]), distance, row) for distance, row in kept)
        return rows[: self.exact_count], len(candidates), candidates[-1][0] if candidates else -1

    def _taken(self, i, bits):
        taken = self.columns["expire_times"] > NOW
        if self.options.get("scopes") is not None:
            taken &= self.columns["scopes"] == self.options["scopes"][i]
        if self.options.get("allowed") is not None:
            taken &= self.options["allowed"]
        if self.options.get("max_distances") is not None:
            taken &= bits.sum(axis=1) <= self.options["max_distances"][i]
        if self.options.get("prefix_limits") is not None:
            for prefix, limit in zip(PREFIX_BITS, self.options["prefix_limits"][i].tolist(), strict=False):
                taken &= bits[:, : prefix // 64].sum(axis=1) <= limit
        if self.lists is not None:
            inside = np.zeros(taken.size, dtype=np.bool_)
            for start, stop in self.lists.spans(self.queries[i], self.choice).tolist():
                inside[start:stop] = True
            taken &= inside
        return taken


@st.composite
def cases(draw, *, with_lists=False):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row_count = draw(st.one_of(st.sampled_from([0, 1, 512, 513]), st.integers(0, 1_500)))
    query_count = 1 if with_lists else draw(st.integers(0, 5))
    dim, words = draw(st.sampled_from([1, 7, 16, 33, 128])), draw(st.integers(1, 4))
    values = draw(st.sampled_from([2, 4, 30]))  # few values: many equal distances, and rows of zeros
    vectors = rng.integers(-values, values + 1, (row_count, dim)).astype(np.float16)
    columns = make_columns(
        rng, row_count, vectors=vectors, words=words, dead_share=draw(st.sampled_from([0.0, 0.3, 1.0]))
    )
    case = Case(
        columns=columns,
        codes=similar_codes(rng, query_count, words),
        axes=rng.integers(0, dim, query_count).tolist(),
        norm=draw(st.sampled_from(NORMS)),
        count=draw(st.one_of(st.integers(1, 70), st.integers(1, row_count + 10))),
        exact_count=draw(st.one_of(st.sampled_from([1, 2]), st.integers(1, 80))),
        with_bytes=draw(st.booleans()),
    )
    if row_count and draw(st.booleans()):
        case.codes[:] = columns["codes"][:1]
    if draw(st.booleans()):
        case.options["scopes"] = rng.integers(0, 4, query_count).astype(np.uint64)
    if draw(st.booleans()):
        case.options["allowed"] = rng.random(row_count) < draw(st.sampled_from([0.0, 0.1, 0.9]))
    if draw(st.booleans()):
        case.options["max_distances"] = rng.integers(-1, 64 * words + 1, query_count, dtype=np.int32)
    if draw(st.booleans()):
        shape = (query_count, sum(bits < 64 * words for bits in PREFIX_BITS))
        case.options["prefix_limits"] = rng.integers(-1, draw(st.sampled_from([30, 130])), shape, np.int32)
    if with_lists:
        edges = sorted(draw(st.lists(st.integers(0, row_count), min_size=1, max_size=9)))
        margins = make_margins(by_recall=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0])))
        seed = draw(st.integers(0, 99))
        case.lists = lists_of([0, *edges, row_count], dim=dim, seed=seed, margins=margins)
        case.least = draw(st.integers(1, 3))
    return case


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_nearest_rows_equal_brute_force(name, case):
    _kernels.choose(name)
    assert case.found() == case.expected()


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None)
@given(case=cases(with_lists=True))
def test_nearest_rows_of_lists_are_those_of_the_spans(name, case):
    _kernels.choose(name)
    assert case.found() == case.expected()


def random_table(row_count=400, *, dim=40, with_bytes=True, seed=3):
    """A table of live rows of norm 1, and its columns."""
    vectors = unit_vectors(row_count, seed=seed, dim=dim).astype(np.float16)
    columns = make_columns(np.random.default_rng(seed), row_count, vectors=vectors, dead_share=0.0)
    return table_of(columns, with_bytes=with_bytes), columns


@pytest.mark.parametrize("with_bytes", [False, True])
@pytest.mark.parametrize("norm", [1e-40, 1e-6, 1.0, 1e38])
def test_rows_are_measured_as_by_cosine_distances(each_set, with_bytes, norm):
    table, columns = random_table(with_bytes=with_bytes)
    queries = (unit_vectors(3, seed=4, dim=40).astype(np.float64) * norm).astype(np.float32)
    found = table.nearest_rows(columns["codes"][:3], queries, count=50, exact_count=9, now_ms=NOW)
    for i, (rows, examined, _) in enumerate(found):
        assert (len(rows), examined) == (9, 50)
        distances, ids, bits, offsets = (list(column) for column in zip(*rows, strict=True))
        exact = cosine_distances(columns["vectors"], queries[i], offsets=np.array(offsets))
        assert distances == exact.tolist()
        np.testing.assert_allclose(
            distances, exact_distances(columns["vectors"][offsets], queries[i]), atol=2e-6
        )
        assert ids == columns["entry_ids"][offsets].tolist()
        assert bits == np.bitwise_count(columns["codes"][offsets] ^ columns["codes"][i]).sum(axis=1).tolist()


def test_candidates_nearest_by_int8_are_kept(each_set):
    """Of random vectors: the exact distances of what is left out lie beyond those of what is kept, but for
    what rounding to int8 moves."""
    table, columns = random_table()
    queries = unit_vectors(5, seed=4, dim=40)
    codes = columns["codes"][:5]
    everything = table.nearest_rows(codes, queries, count=100, exact_count=100, now_ms=NOW)
    for (rows, _, _), (kept, _, _) in zip(
        everything, table.nearest_rows(codes, queries, count=100, exact_count=20, now_ms=NOW), strict=True
    ):
        assert set(kept) <= set(rows)
        assert len(kept) == 20
        assert kept[-1][0] <= rows[19][0] + 0.01


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_many_candidates_in_any_order_are_selected(each_set, order):
    _, columns = random_table(3_000, dim=20)
    query = unit_vectors(1, seed=6, dim=20)
    vectors = columns["vectors"]
    ranked = np.argsort(cosine_distances(quantise(vectors), query[0]), kind="stable")
    vectors = {
        "ascending": vectors[ranked],
        "descending": vectors[ranked[::-1]],
        "equal": np.repeat(vectors[:1], 3_000, axis=0),
    }[order]
    codes = np.zeros_like(columns["codes"])  # candidates are in the order of the rows
    table = table_of(columns | {"vectors": vectors, "codes": codes})
    ((rows, examined, worst),) = table.nearest_rows(
        codes[:1], query, count=3_000, exact_count=700, now_ms=NOW
    )
    assert (examined, worst, len(rows)) == (3_000, 0, 700)
    offsets = [row[3] for row in rows]
    if order == "equal":
        assert sorted(offsets) == list(range(700))
        assert [row[1] for row in rows] == sorted(columns["entry_ids"][:700].tolist())
    else:
        rough = cosine_distances(quantise(vectors), query[0])
        np.testing.assert_array_equal(np.sort(rough[offsets]), np.sort(rough)[:700])


@pytest.mark.parametrize("list_count", [0, 1, 4])
def test_sampled_searches_of_many_rows_equal_brute_force(each_set, list_count):
    """Enough rows, in one span, that a sample of the blocks says first what is near."""
    row_count = 40_000
    rng = np.random.default_rng(1)
    vectors = rng.integers(-5, 6, (row_count, 4)).astype(np.float16)
    columns = make_columns(rng, row_count, vectors=vectors)
    columns["codes"] = rng.integers(0, 2**64, (row_count, 2), dtype=np.uint64)
    case = Case(columns, similar_codes(rng, 1 if list_count else 3, 2), [0] if list_count else [0, 3, 1])
    case.count, case.exact_count = 300, 40
    if list_count:
        bounds = np.linspace(0, row_count, list_count + 2).astype(int).tolist()
        case.lists = lists_of(bounds, dim=4, margins=make_margins())
        case.least = list_count
    assert case.found() == case.expected()


def test_rows_that_die_or_come_back_later_are_seen_by_the_next_search():
    table, columns = random_table(30)
    asked = {"count": 30, "exact_count": 30, "now_ms": NOW}
    query = columns["vectors"][:1].astype(np.float32)
    nearest = table.nearest_rows(columns["codes"][:1], query, **asked)[0][0]
    columns["expire_times"][nearest[0][3]] = NOW
    assert table.nearest_rows(columns["codes"][:1], query, **asked)[0][0] == nearest[1:]
    columns["expire_times"][nearest[0][3]] = NOW + 1
    assert table.nearest_rows(columns["codes"][:1], query, **asked)[0][0] == nearest


@pytest.mark.parametrize("part", [np.inf, -np.inf, np.nan])
def test_rows_that_are_not_finite_come_last(each_set, part):
    _, columns = random_table(40)
    columns["vectors"][7, 3] = columns["vectors"][[8, 30]] = part
    table = table_of(columns, with_bytes=False)
    rows, _, _ = table.nearest_rows(
        columns["codes"][:1], unit_vectors(1, seed=9, dim=40), count=40, exact_count=40, now_ms=NOW
    )[0]
    assert {row[3] for row in rows[-3:]} == {7, 8, 30}
    assert [row[:2] for row in rows[-3:]] == [(2, i) for i in sorted(columns["entry_ids"][[7, 8, 30]])]


def test_queries_in_any_memory_order_are_read_right():
    table, columns = random_table()
    vectors = unit_vectors(6, seed=4, dim=40)
    asked = {"count": 20, "exact_count": 9, "now_ms": NOW}
    plain = table.nearest_rows(columns["codes"][:6], vectors, **asked)
    assert table.nearest_rows(np.asfortranarray(columns["codes"][:6]), vectors, **asked) == plain
    strided = [np.repeat(array, 2, axis=0)[::2] for array in (columns["codes"][:6], vectors)]
    assert table.nearest_rows(*strided, **asked) == plain
    assert table.nearest_rows(columns["codes"][:6], np.asfortranarray(vectors), **asked) == plain


# What a table refuses.

ROWS, DIM, WORDS = 9, 4, 3


def plain_columns():
    return {
        "codes": np.zeros((ROWS, WORDS), np.uint64),
        "blocks": empty_blocks(ROWS, code_words=WORDS),
        "vectors": np.ones((ROWS, DIM), np.float16),
        "quantised": np.ones((ROWS, DIM), np.int8),
        "entry_ids": np.arange(ROWS),
        "scopes": np.zeros(ROWS, np.uint64),
        "expire_times": np.full(ROWS, NEVER),
    }


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"codes": np.zeros((ROWS, WORDS), np.int64)}, "codes"),
        ({"codes": np.zeros(ROWS, np.uint64)}, "codes"),
        ({"codes": np.zeros((ROWS - 1, WORDS), np.uint64)}, "codes"),
        ({"codes": np.zeros((ROWS, WORDS + 1), np.uint64)}, "blocks"),
        ({"blocks": np.zeros((1, _kernels.block_words(192)), np.int64)}, "blocks"),
        ({"vectors": np.ones((ROWS, DIM), np.float32)}, "vectors"),
        ({"vectors": np.ones(ROWS, np.float16)}, "vectors"),
        ({"quantised": np.ones((ROWS, DIM), np.uint8)}, "quantised"),
        ({"quantised": np.ones((ROWS - 1, DIM), np.int8)}, "quantised"),
        ({"quantised": np.ones((ROWS, DIM + 1), np.int8)}, "quantised"),
        ({"entry_ids": np.arange(ROWS, dtype=np.int32)}, "entry_ids"),
        ({"entry_ids": np.arange(ROWS + 1)}, "entry_ids"),
        ({"scopes": np.zeros(ROWS, np.int64)}, "scopes"),
        ({"scopes": np.zeros(ROWS - 1, np.uint64)}, "scopes"),
        ({"expire_times": np.full(ROWS, 1e9)}, "expire_times"),
        ({"expire_times": np.full((ROWS, 1), NEVER)}, "expire_times"),
    ],
)
def test_column_of_wrong_dtype_or_shape_is_named(changes, name):
    with pytest.raises(DimensionError, match=rf"^{name}\b"):
        SearchTable(**(plain_columns() | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": empty_blocks(0, code_words=WORDS)}, "^blocks"),
        ({"codes": np.zeros((WORDS, ROWS), np.uint64).T}, "^codes: must be contiguous"),
        ({"vectors": np.ones((DIM, ROWS), np.float16).T}, "^vectors: must be contiguous"),
        ({"quantised": np.ones((DIM, ROWS), np.int8).T}, "^quantised: must be contiguous"),
        ({"entry_ids": np.arange(2 * ROWS)[::2]}, "^entry_ids: must be contiguous"),
        ({"scopes": np.zeros(2 * ROWS, np.uint64)[::2]}, "^scopes: must be contiguous"),
        ({"expire_times": np.full(2 * ROWS, NEVER)[::-2]}, "^expire_times: must be contiguous"),
    ],
)
def test_columns_that_searches_could_not_read_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SearchTable(**(plain_columns() | changes))


def test_blocks_of_just_the_rows_are_enough():
    columns = {name: np.repeat(column, 600, axis=0)[:513] for name, column in plain_columns().items()}
    table = SearchTable(**(columns | {"blocks": empty_blocks(513, code_words=WORDS)}))
    assert table.row_count == 513
    with pytest.raises(ValueError, match="blocks: 1 are too few for 513 rows"):
        SearchTable(**(columns | {"blocks": empty_blocks(512, code_words=WORDS)}))


def plain_lists(**changes):
    usual = {"bounds": [0, 4, ROWS], "dim": DIM, "margins": make_margins()}
    return lists_of(**(usual | changes)).near(least=1, recall=0.9)


def plain_search(*, columns=None, query_count=2, **changes):
    usual = {
        "codes": np.zeros((query_count, WORDS), np.uint64),
        "vectors": np.ones((query_count, DIM), np.float32),
        "count": 3,
        "exact_count": 2,
        "now_ms": NOW,
    }
    arguments = usual | changes
    table = SearchTable(**(plain_columns() | (columns or {})))
    return table.nearest_rows(arguments.pop("codes"), arguments.pop("vectors"), **arguments)


def test_usual_search_is_valid():
    row = (0.0, 0, 0, 0)
    assert plain_search()[1] == ([row, (0.0, 1, 0, 1)], 3, 0)
    assert plain_search(query_count=1, lists=plain_lists())[0] == ([row, (0.0, 1, 0, 1)], 3, 0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"codes": np.zeros((2, WORDS), np.int64)}, "query codes"),
        ({"codes": np.zeros((2, WORDS - 1), np.uint64)}, "query codes"),
        ({"codes": np.zeros(WORDS, np.uint64)}, "query codes"),
        ({"vectors": np.ones((2, DIM))}, "query vectors"),
        ({"vectors": np.ones((2, DIM), np.float16)}, "query vectors"),
        ({"vectors": np.ones((2, DIM + 1), np.float32)}, "query vectors"),
        ({"vectors": np.ones((3, DIM), np.float32)}, "query vectors"),
        ({"vectors": np.ones(2 * DIM, np.float32)}, "query vectors"),
        ({"scopes": np.zeros(3, np.uint64)}, "query_scopes"),
        ({"scopes": np.zeros(2, np.int64)}, "query_scopes"),
        ({"allowed": np.ones(ROWS - 1, np.bool_)}, "allowed"),
        ({"allowed": np.ones(ROWS, np.uint8)}, "allowed"),
        ({"max_distances": np.full(2, 9)}, "max_distances"),
        ({"max_distances": np.full(1, 9, np.int32)}, "max_distances"),
        ({"prefix_limits": np.full((2, 1), 9, np.int32)}, "prefix_limits"),
        ({"prefix_limits": np.full((2, 2), 9)}, "prefix_limits"),
    ],
)
def test_query_of_wrong_dtype_or_shape_is_named(changes, name):
    with pytest.raises(DimensionError, match=f"^{name}: "):
        plain_search(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact_count": 0}, "exact_count"),
        ({"exact_count": -1}, "exact_count"),
        ({"count": 0}, "wanted"),
        ({"max_distances": np.full(2, 193, np.int32)}, "max_distances"),
        ({"lists": plain_lists()}, "^lists: are chosen for one query, not for 2"),
        ({"lists": plain_lists(), "query_count": 0}, "^lists: are chosen for one query, not for 0"),
        ({"lists": plain_lists(bounds=[0, 4, ROWS - 1]), "query_count": 1}, "lists"),
        ({"lists": plain_lists(bounds=[0, 4, ROWS + 1]), "query_count": 1}, "lists"),
        ({"lists": plain_lists(dim=DIM - 1), "query_count": 1}, "lists"),
        ({"lists": plain_lists(dim=DIM + 1), "query_count": 1}, "lists"),
    ],
)
def test_invalid_search_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plain_search(**changes)


def test_more_rows_than_there_are_may_be_asked_for():
    asked = {"count": 2**50, "exact_count": 2**50}
    assert [(len(rows), examined) for rows, examined, _ in plain_search(**asked)] == [(ROWS, ROWS)] * 2


def test_no_queries_and_no_rows_find_nothing():
    assert plain_search(query_count=0) == []
    nothing = {name: column[:0] for name, column in plain_columns().items()}
    assert plain_search(columns=nothing) == [([], 0, -1)] * 2


def test_unit_rows_have_norm_one_and_zeros_stay():
    vectors = (unit_vectors(5, seed=2) * 7).astype(np.float16)
    vectors[3] = 0
    norms = np.linalg.norm(unit_rows(vectors), axis=1)
    np.testing.assert_allclose(norms, [1, 1, 1, 0, 1], atol=1e-6)
