"""What the kernels refuse. Memory carries no type: what got through would be misread."""

import numpy as np
import pytest

from index import NEVER, DimensionError, _kernels, asymmetric_scores, cosine_distances, nearest_codes
from index.kernels import append_codes, empty_blocks, quantise

NOW = 1_000  # ms

ROWS, QUERIES = 600, 2


def valid_search(**changes):
    codes = np.random.default_rng(5).integers(0, 2**64, (ROWS, 3), dtype=np.uint64)
    blocks = empty_blocks(ROWS, code_words=3)
    append_codes(blocks, codes, row_count=0)
    usual = {
        "blocks": blocks,
        "queries": codes[:QUERIES],
        "count": 3,
        "expire_times": np.full(ROWS, NEVER),
        "now_ms": NOW,
        "scopes": np.zeros(ROWS, np.uint64),
        "query_scopes": np.zeros(QUERIES, np.uint64),
        "allowed": np.ones(ROWS, np.bool_),
        "spans": np.array([[0, 300], [300, ROWS]]),
        "max_distances": np.full(QUERIES, 192, np.int32),
        "prefix_limits": np.full((QUERIES, 2), 128, np.int32),
    }
    arguments = usual | changes
    blocks, queries = arguments.pop("blocks"), arguments.pop("queries")
    return nearest_codes(blocks, queries, **arguments)


def test_usual_search_is_valid():
    assert valid_search()[2].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"blocks": np.zeros((2, 99), np.uint64)}, "blocks"),
        ({"blocks": np.zeros((2, _kernels.block_words(192)), np.float64)}, "blocks"),
        ({"queries": np.zeros((QUERIES, 2), np.uint64)}, "blocks"),
        ({"queries": np.zeros((QUERIES, 17), np.uint64)}, "query codes"),
        ({"queries": np.zeros((QUERIES, 0), np.uint64)}, "query codes"),
        ({"queries": np.zeros((QUERIES, 3), np.int64)}, "query codes"),
        ({"queries": np.zeros(3, np.uint64)}, "query codes"),
        ({"expire_times": np.full(ROWS, 2**31 - 1, np.int32)}, "expire_times"),
        ({"expire_times": np.full(ROWS, 1e9)}, "expire_times"),
        ({"expire_times": np.full(ROWS, NEVER).astype(">i8")}, "expire_times"),
        ({"expire_times": np.full((ROWS, 2), NEVER)}, "expire_times"),
        ({"scopes": np.zeros(ROWS - 1, np.uint64)}, "scopes"),
        ({"scopes": np.zeros(ROWS, np.int64)}, "scopes"),
        ({"scopes": np.zeros(2 * ROWS, np.uint32)}, "scopes"),
        ({"query_scopes": np.zeros(QUERIES - 1, np.uint64)}, "query_scopes"),
        ({"query_scopes": np.zeros(QUERIES, np.float64)}, "query_scopes"),
        ({"allowed": np.ones(ROWS - 1, np.bool_)}, "allowed"),
        ({"allowed": np.ones(ROWS + 1, np.bool_)}, "allowed"),
        ({"allowed": np.ones(ROWS, np.int64)}, "allowed"),
        ({"spans": np.array([[0, ROWS]], np.int32)}, "spans"),
        ({"spans": np.array([0, ROWS])}, "spans"),
        ({"spans": np.array([[0, 1, 2]])}, "spans"),
        ({"spans": np.array([[0.0, 1.0]])}, "spans"),
        ({"max_distances": np.full(QUERIES, 9, np.int64)}, "max_distances"),
        ({"max_distances": np.full(QUERIES + 1, 9, np.int32)}, "max_distances"),
        ({"prefix_limits": np.full((QUERIES, 1), 9, np.int32)}, "prefix_limits"),
        ({"prefix_limits": np.full((QUERIES, 2), 9, np.int64)}, "prefix_limits"),
        ({"prefix_limits": np.full(2 * QUERIES, 9, np.int32)}, "prefix_limits"),
    ],
)
def test_argument_of_wrong_dtype_or_shape_is_named(changes, name):
    with pytest.raises(DimensionError, match=f"^{name}"):
        valid_search(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": np.zeros((1, _kernels.block_words(192)), np.uint64)}, "blocks"),
        ({"count": 0}, "wanted"),
        ({"spans": np.array([[0, ROWS + 1]])}, "spans"),
        ({"spans": np.array([[-1, 5]])}, "spans"),
        ({"spans": np.array([[5, 9], [8, 10]])}, "spans"),
        ({"spans": np.array([[50, 60], [8, 10]])}, "spans"),
        ({"spans": np.array([[9, 4]])}, "spans"),
        ({"spans": np.array([[ROWS + 1, ROWS + 1]])}, "spans"),
        ({"max_distances": np.full(QUERIES, 193, np.int32)}, "max_distances"),
        ({"expire_times": np.full(2 * ROWS, NEVER)[::2]}, "contiguous"),
        ({"scopes": np.zeros(2 * ROWS, np.uint64)[::2]}, "contiguous"),
        ({"allowed": np.ones(ROWS, np.bool_)[::-1]}, "contiguous"),
        ({"blocks": np.zeros((4, _kernels.block_words(192)), np.uint64)[::2]}, "contiguous"),
        ({"scopes": None}, "together"),
        ({"query_scopes": None}, "together"),
    ],
)
def test_invalid_argument_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        valid_search(**changes)


@pytest.mark.parametrize("spans", [[[5, 5]], [[ROWS, ROWS]], [[0, 0], [0, 0]]])
def test_empty_spans_hold_no_row(spans):
    assert valid_search(spans=np.array(spans))[2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("blocks_rows", "codes", "row_count", "error"),
    [
        (512, np.zeros((513, 2), np.uint64), 0, ValueError),
        (512, np.zeros((1, 2), np.uint64), 512, ValueError),
        (512, np.zeros((1, 2), np.uint64), -1, ValueError),
        (512, np.zeros((1, 3), np.uint64), 0, DimensionError),
        (512, np.zeros((1, 2), np.int64), 0, DimensionError),
        (512, np.zeros(2, np.uint64), 0, DimensionError),
    ],
)
def test_append_that_does_not_fit_is_refused(blocks_rows, codes, row_count, error):
    blocks = empty_blocks(blocks_rows, code_words=2)
    with pytest.raises(error):
        append_codes(blocks, codes, row_count=row_count)
    assert not blocks.any()


def test_append_to_read_only_blocks_is_refused():
    blocks = empty_blocks(5, code_words=2)
    blocks.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        append_codes(blocks, np.ones((1, 2), np.uint64), row_count=0)


def test_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="sse9"):
        _kernels.choose("sse9")


# Vectors.


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"query": np.ones(7, np.float32)}, "query"),
        ({"query": np.ones((1, 8), np.float32)}, "query"),
        ({"query": np.ones(8, np.float64)}, "query"),
        ({"query": np.ones(8, np.float16)}, "query"),
        ({"offsets": np.zeros(3, np.int32)}, "offsets"),
        ({"offsets": np.zeros(3, np.uint64)}, "offsets"),
        ({"offsets": np.zeros(3)}, "offsets"),
        ({"offsets": np.zeros((3, 1), np.int64)}, "offsets"),
        ({"vectors": np.ones(8, np.float16)}, "vectors"),
        ({"vectors": np.ones((2, 2, 8), np.float16)}, "vectors"),
        ({"vectors": np.ones((5, 8), np.float32)}, "vectors"),
        ({"vectors": np.ones((5, 8), np.uint8)}, "vectors"),
        ({"vectors": np.ones((5, 8), np.int16)}, "vectors"),
        ({"vectors": np.ones((5, 8), ">f2")}, "vectors"),
    ],
)
def test_measured_arrays_of_wrong_dtype_or_shape_are_named(dtype, changes, name):
    usual = {"vectors": np.ones((5, 8), dtype), "query": np.ones(8, np.float32), "offsets": np.arange(5)}
    arguments = usual | changes
    with pytest.raises(DimensionError, match=f"^{name}: "):
        cosine_distances(arguments["vectors"], arguments["query"], offsets=arguments["offsets"])


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
@pytest.mark.parametrize("offset", [5, -1, 2**62, -(2**63)])
def test_offset_out_of_range_is_refused(dtype, offset):
    vectors, query = np.ones((5, 8), dtype), np.ones(8, np.float32)
    with pytest.raises(IndexError, match="of 5 rows"):
        cosine_distances(vectors, query, offsets=np.array([0, offset]))


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_strided_vectors_and_offsets_are_refused(dtype):
    vectors, query = np.ones((10, 8), dtype), np.ones(8, np.float32)
    for strided in (vectors[::2], np.asfortranarray(vectors)):
        with pytest.raises(ValueError, match="contiguous"):
            cosine_distances(strided, query)
    with pytest.raises(ValueError, match="contiguous"):
        cosine_distances(vectors, query, offsets=np.arange(10)[::2])


@pytest.mark.parametrize(("shape", "dtype"), [(8, np.float16), ((2, 8), np.float32), ((2, 8), np.int8)])
def test_vectors_that_cannot_be_quantised_are_refused(shape, dtype):
    with pytest.raises(DimensionError, match=r"^vectors: "):
        quantise(np.ones(shape, dtype))


@pytest.mark.parametrize(
    ("codes", "values", "name"),
    [
        (np.zeros((3, 2), np.uint64), np.ones(64, np.float32), "codes"),
        (np.zeros((3, 1), np.int64), np.ones(64, np.float32), "codes"),
        (np.zeros(3, np.uint64), np.ones(64, np.float32), "codes"),
        (np.zeros((3, 1), np.uint64), np.ones(64, np.float64), "query values"),
        (np.zeros((3, 1), np.uint64), np.ones((1, 64), np.float32), "query values"),
    ],
)
def test_codes_or_values_of_wrong_dtype_or_shape_are_named(codes, values, name):
    with pytest.raises(DimensionError, match=f"^{name}: "):
        asymmetric_scores(codes, values)


def test_blocks_off_a_cache_line_are_refused():
    blocks = empty_blocks(600, code_words=2)
    buffer = np.zeros(blocks.nbytes + 128, dtype=np.uint8)
    start = -buffer.ctypes.data % 64 + 8
    shifted = buffer[start : start + blocks.nbytes].view(np.uint64).reshape(blocks.shape)
    with pytest.raises(ValueError, match="cache line"):
        nearest_codes(
            shifted,
            np.zeros((1, 2), dtype=np.uint64),
            count=1,
            expire_times=np.full(600, 9, dtype=np.int64),
            now_ms=1,
        )


@pytest.mark.parametrize("limit", [-1, -2_000, -(2**31)])
def test_negative_prefix_limits_let_nothing_through(limit):
    codes = np.zeros((600, 4), dtype=np.uint64)
    blocks = empty_blocks(600, code_words=4)
    append_codes(blocks, codes, row_count=0)
    _, _, found = nearest_codes(
        blocks,
        codes[:1],
        count=3,
        expire_times=np.full(600, 9, dtype=np.int64),
        now_ms=1,
        prefix_limits=np.array([[limit, 128]], dtype=np.int32),
    )
    assert found.tolist() == [0]


@pytest.mark.parametrize("limit", [-1, -600, -(2**31)])
@pytest.mark.parametrize("with_prefixes", [False, True])
def test_negative_max_distances_let_nothing_through(limit, with_prefixes):
    limits = {} if with_prefixes else {"prefix_limits": None}
    max_distances = np.array([limit, 192], dtype=np.int32)
    _, distances, found = valid_search(max_distances=max_distances, **limits)
    assert found.tolist() == [0, 3]
    assert distances[1, 0] == 0


# Lists.

CHOICE = {
    "centroids": np.ones((4, 8), np.float16),
    "bounds": np.array([0, 2, 4, 6, 8]),
    "list_count": 4,
    "dim": 8,
    "margin": 0.0,
    "least": 1,
}


def spans_near(*, query=None, **changes):
    query = np.ones(8, np.float32) if query is None else query
    spans = _kernels.spans_near(tuple((CHOICE | changes).values()), query)
    return np.frombuffer(spans, np.int64).reshape(-1, 2).tolist()


@pytest.mark.parametrize("margin", [0.0, 2.0, float("inf")])
@pytest.mark.parametrize("least", [1, 4])
def test_usual_choice_of_lists_is_valid(margin, least):
    assert spans_near(margin=margin, least=least) == [[0, 8]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least": 0}, "count"),
        ({"least": -1}, "count"),
        ({"least": 5}, "count"),
        ({"list_count": 0}, "count"),
        ({"dim": -1}, "count"),
        ({"centroids": np.ones((3, 8), np.float16)}, "^centroids: 48 bytes"),
        ({"centroids": np.ones((4, 8), np.int8)}, "^centroids: 32 bytes"),
        ({"bounds": np.array([0, 2, 4, 8])}, "^bounds: 32 bytes"),
        ({"bounds": np.array([0, 2, 1, 6, 8])}, "ascend"),
        ({"bounds": np.array([0, 9, 9, 9, 8])}, "ascend"),
        ({"bounds": np.array([1, 2, 4, 6, 8])}, "ascend from 0"),
        ({"bounds": np.array([-1, 2, 4, 6, 8])}, "ascend from 0"),
        ({"margin": float("nan")}, "margin"),
        ({"margin": -1e-9}, "margin"),
        ({"query": np.ones(7, np.float32)}, "query: 28 bytes"),
        ({"query": np.ones(16, np.float32)[::2]}, "contiguous"),
        ({"centroids": np.ones((8, 8), np.float16)[::2]}, "contiguous"),
        ({"bounds": np.arange(10)[::2]}, "contiguous"),
    ],
)
def test_invalid_choice_of_lists_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spans_near(**changes)
