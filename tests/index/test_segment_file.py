import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from index_rows import (
    ALL_RADII,
    CODE_BITS,
    DIM,
    KEY,
    NOW,
    config,
    exact_distances,
    ids_of,
    int64,
    lists_of,
    make_margins,
    make_rows,
    nearest_ids,
    request,
    unit_vectors,
)

from index import (
    NEVER,
    DamagedSegmentError,
    InvalidRowsError,
    SealedSegment,
    SearchPath,
    SegmentKey,
    VectorIndex,
    pack,
    read_segment,
    write_segment,
)
from index.list_margins import DISTANCE_COUNT, RECALLS
from index.rows import memory_bytes
from index.vectors import unit_rows

FIXTURES = Path(__file__).parent / "fixtures"


def sample_rows(**columns):
    return make_rows([3, 5, 8, 13], payloads=[b"", b"\x00\xff", b"long " * 30, b"x"], **columns)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.segment"
    write_segment(path, cache="shop", key=KEY, rows=sample_rows())
    return path


MARGINS = make_margins(by_distance=np.linspace(0, 1, 20), by_recall=np.linspace(0, 0.5, 6))
LISTS = lists_of([0, 2, 2, 4], margins=MARGINS)


def listed_rows(ids=(5, 13, 3, 8), **columns):
    """Rows in the order of LISTS."""
    return make_rows(ids, payloads=[b"", b"\x00\xff", b"long " * 30, b"x"], **columns)


@pytest.fixture
def listed_path(tmp_path):
    path = tmp_path / "listed.segment"
    write_segment(path, cache="shop", key=KEY, rows=listed_rows(), lists=LISTS)
    return path


def header_of(content):
    size = struct.unpack_from("<8sII", content)[1]
    return json.loads(content[16 : 16 + size]), -(-(16 + size) // 64) * 64


def with_header(content, **changes):
    """The file with a changed header under a right checksum."""
    header, columns_start = header_of(content)
    text = json.dumps(header | changes).encode()
    preamble = struct.pack("<8sII", b"NEARHIT1", len(text), zlib.crc32(text))
    gap = bytes(-(len(preamble) + len(text)) % 64)
    return preamble + text + gap + content[columns_start:]


def replace_column(path, name, array):
    """Under right checksums: a file that something else than write_segment made."""
    content = bytearray(path.read_bytes())
    header, columns_start = header_of(content)
    column, stored = header["columns"][name], array.tobytes()
    start = columns_start + column["offset"]
    content[start : start + len(stored)] = stored
    columns = header["columns"] | {name: column | {"crc32": zlib.crc32(stored)}}
    path.write_bytes(with_header(bytes(content), columns=columns))


def assert_equal_rows(got, expected):
    assert got.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        assert np.array_equal(got.columns[name], column), name
        assert got.columns[name].dtype == column.dtype
    assert [got.payloads[i] for i in range(len(got))] == [expected.payloads[i] for i in range(len(expected))]


@pytest.mark.parametrize("row_count", [0, 1, 4, 33])
def test_written_rows_are_read_back(tmp_path, row_count):
    rows = make_rows(range(10, 10 + row_count))
    size_bytes, checksum = write_segment(tmp_path / "a", cache="shop", key=KEY, rows=rows)
    segment = read_segment(tmp_path / "a")
    assert_equal_rows(segment.rows, rows)
    assert (segment.cache, segment.key) == ("shop", KEY)
    assert (segment.size_bytes, segment.checksum) == (size_bytes, checksum)
    assert (tmp_path / "a").stat().st_size == size_bytes


def test_rows_without_codes_and_label_codes_are_read_back(tmp_path):
    key = SegmentKey(2, "image", None)
    rows = make_rows([1, 2], with_codes=False, label_codes=np.empty((2, 0), dtype=np.uint64))
    write_segment(tmp_path / "a", cache="shop", key=key, rows=rows)
    segment = read_segment(tmp_path / "a")
    assert segment.rows.codes is None
    assert segment.rows.label_codes.shape == (2, 0)


@pytest.mark.parametrize("payload_count", [4_095, 4_096, 4_097, 8_193])
def test_payloads_of_many_rows_are_read_back(tmp_path, payload_count):
    rows = make_rows(range(payload_count))
    write_segment(tmp_path / "a", cache="shop", key=KEY, rows=rows)
    assert_equal_rows(read_segment(tmp_path / "a").rows, rows)


def test_lists_are_read_back(listed_path):
    segment = read_segment(listed_path)
    assert_equal_rows(segment.rows, listed_rows())
    assert np.array_equal(segment.lists.centroids, LISTS.centroids)
    assert np.array_equal(segment.lists.bounds, LISTS.bounds)
    for name in ("by_distance", "by_recall"):
        assert np.array_equal(getattr(segment.lists.margins, name), getattr(MARGINS, name)), name


def test_rows_without_lists_are_read_without(path):
    assert read_segment(path).lists is None


@pytest.mark.parametrize("ids", [(13, 5, 3, 8), (5, 13, 8, 3)])
def test_rows_that_do_not_ascend_within_a_list_are_not_written(tmp_path, ids):
    with pytest.raises(InvalidRowsError, match="within each list"):
        write_segment(tmp_path / "a", cache="shop", key=KEY, rows=listed_rows(ids), lists=LISTS)


@pytest.mark.parametrize("rows", [make_rows(range(3)), make_rows(range(5)), make_rows([])])
def test_lists_of_other_rows_are_not_written(tmp_path, rows):
    with pytest.raises(InvalidRowsError, match="lists of 4 rows"):
        write_segment(tmp_path / "a", cache="shop", key=KEY, rows=rows, lists=LISTS)


def test_columns_are_views_of_the_file(listed_path):
    for name, column in read_segment(listed_path).rows.columns.items():
        assert not column.flags.writeable, name
        assert memory_bytes(column) == 0, name


def test_columns_stay_readable_after_the_file_is_replaced_and_removed(path):
    rows = read_segment(path).rows
    write_segment(path, cache="shop", key=KEY, rows=make_rows(range(50), seed=9))
    path.unlink()
    assert_equal_rows(rows, sample_rows())


def test_columns_are_aligned(listed_path):
    header, columns_start = header_of(listed_path.read_bytes())
    assert columns_start % 64 == 0
    assert all(column["offset"] % 64 == 0 for column in header["columns"].values())


@pytest.mark.parametrize("offset", [-1, -4, -5, 4, 5])
def test_payloads_of_no_row_are_refused(path, offset):
    payloads = read_segment(path).rows.payloads
    assert len(payloads) == 4
    with pytest.raises(IndexError):
        payloads[offset]


def test_payloads_stay_readable_after_the_file_is_removed(path):
    rows = read_segment(path).rows
    path.unlink()
    assert rows.payloads[1] == b"\x00\xff"


def test_serving_does_not_change_the_file(path):
    before = path.read_bytes()
    segment = SealedSegment(KEY, read_segment(path).rows)
    segment.tombstone(np.array([5]))
    segment.set_expire_times(np.array([8]), np.array([77]))
    assert path.read_bytes() == before


def test_no_temporary_file_is_left(path):
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_unsorted_rows_are_not_written(tmp_path):
    with pytest.raises(InvalidRowsError, match="ascend"):
        write_segment(tmp_path / "a", cache="shop", key=KEY, rows=make_rows([2, 1]))
    assert not (tmp_path / "a").exists()


def test_flip_in_a_column_names_it(listed_path):
    path = listed_path
    content = path.read_bytes()
    header, columns_start = header_of(content)
    assert len(header["columns"]) == 14
    for name, column in header["columns"].items():
        for position in {0, column["size_bytes"] // 2, column["size_bytes"] - 1}:
            damaged = bytearray(content)
            damaged[columns_start + column["offset"] + position] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(DamagedSegmentError, match=f"column {name} does not match its checksum"):
                read_segment(path)


def test_flip_of_any_byte_is_refused(listed_path):
    path = listed_path
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DamagedSegmentError):
            read_segment(path)


def test_truncation_at_any_length_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedSegmentError) as caught:
            read_segment(path)
        assert caught.value.path == path


def test_appended_bytes_are_refused(path):
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(DamagedSegmentError, match="bytes"):
        read_segment(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 40, b"\x93NUMPY" + bytes(200), b"NEARHIT2" + bytes(200)])
def test_foreign_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(DamagedSegmentError, match="not a segment file"):
        read_segment(path)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(DamagedSegmentError, match=r"absent\.segment"):
        read_segment(tmp_path / "absent.segment")


def test_later_format_version_is_refused(path):
    path.write_bytes(with_header(path.read_bytes(), format_version=3))
    with pytest.raises(DamagedSegmentError, match="format version 3"):
        read_segment(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"row_count": 5},
        {"row_count": None},
        {"dim": 11},
        {"code_words": 1},
        {"label_words": 2},
        {"list_count": 1},
        {"list_count": -1},
        {"list_count": None},
        {"columns": {}},
        {"columns": None},
        {"key": {"category_id": 1, "modality": "text"}},
        {"key": {"category_id": 1, "modality": "text", "encoder_id": None}},
    ],
)
def test_header_that_does_not_fit_its_columns_is_refused(path, changes):
    path.write_bytes(with_header(path.read_bytes(), **changes))
    with pytest.raises(DamagedSegmentError):
        read_segment(path)


@pytest.mark.parametrize(
    "changes",
    [
        *({"list_count": count} for count in (0, 1, 2, 4, None)),
        {"format_version": 1},
    ],
)
def test_header_that_does_not_fit_its_lists_is_refused(listed_path, changes):
    listed_path.write_bytes(with_header(listed_path.read_bytes(), **changes))
    with pytest.raises(DamagedSegmentError):
        read_segment(listed_path)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 2, 1, 4], "must ascend"),
        ([1, 2, 2, 4], "must ascend from 0"),
        ([0, 2, 2, 5], "lists of 5 rows"),
        ([0, 1, 3, 4], "within each list"),
    ],
)
def test_lists_that_do_not_cut_the_rows_are_refused(listed_path, bounds, message):
    replace_column(listed_path, "list_bounds", int64(*bounds))
    with pytest.raises(DamagedSegmentError, match=message):
        read_segment(listed_path)


@pytest.mark.parametrize("name", ["distance_margins", "recall_margins"])
@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_margins_below_zero_are_refused(listed_path, name, value):
    count = DISTANCE_COUNT if name == "distance_margins" else len(RECALLS)
    replace_column(listed_path, name, np.full(count, value, dtype=np.float32))
    with pytest.raises(DamagedSegmentError, match=name):
        read_segment(listed_path)


FORMAT_2_RECALL_MARGINS = [0.56447, 0.66304, 0.78406, 0.843905, 0.896069, 0.995228]
FORMAT_2_DISTANCE_MARGINS = [0.334181, 1.079846, 1.450653]  # of steps 0, 9 and 19
FORMAT_2_BOUNDS = [0, 33, 51, 75, 93, 128, 149, 168, 190, 219, 242, 272, 300]


def format_2_rows():
    """300 rows by formulas without rounding, so that every machine makes the same; a tenth has expired."""
    ids, columns = 3 * np.arange(1, 301)[:, None], np.arange(DIM)
    vectors = ((ids * ids + 7 * ids * columns + 11 * columns) % 2_039 - 1_019) / 1_024
    signs = np.where(np.arange(DIM * CODE_BITS) ** 2 * 2_654_435_761 % 2**32 < 2**31, 1, -1)
    codes = pack(vectors @ signs.reshape(DIM, CODE_BITS) > 0)
    numbers = ids[:, 0].astype(np.uint64)
    return make_rows(
        ids[:, 0],
        vectors=vectors.astype(np.float16),
        codes=codes,
        label_codes=numbers[:, None] % np.uint64(7),
        label_mask=ids[:, 0] % 2 == 0,
        scopes=numbers % np.uint64(5),
        fingerprints=np.stack([numbers, numbers + np.uint64(2**63)], axis=1),
        expire_times=np.where(ids[:, 0] % 10 == 0, NOW, NEVER),
    )


def test_file_of_format_2_with_lists_stays_readable():
    """Made by commit 321cee9: write_segment(path, cache="demo", key=KEY, rows=rows.take(order), lists=lists)
    with rows = format_2_rows() and order, lists = build_lists(rows.vectors, list_count=12, seed=1)."""
    segment, rows = read_segment(FIXTURES / "format-2-lists.segment"), format_2_rows()
    assert (segment.cache, segment.key) == ("demo", KEY)
    assert_equal_rows(segment.rows.take(np.argsort(segment.rows.entry_ids)), rows)
    lists = segment.lists
    assert lists.bounds.tolist() == FORMAT_2_BOUNDS
    np.testing.assert_allclose(lists.margins.by_recall, FORMAT_2_RECALL_MARGINS, atol=1e-6)
    np.testing.assert_allclose(lists.margins.by_distance[[0, 9, 19]], FORMAT_2_DISTANCE_MARGINS, atol=1e-6)
    cosines = unit_rows(segment.rows.vectors) @ unit_rows(lists.centroids).T
    own = np.repeat(np.arange(12), np.diff(lists.bounds))
    assert np.all(cosines[np.arange(300), own] >= cosines.max(axis=1) - 1e-5)


@pytest.mark.parametrize("path", [SearchPath.IVF, SearchPath.CASCADE, SearchPath.SCAN])
@pytest.mark.parametrize("scope", [None, 3])
def test_search_of_lists_of_format_2_equals_a_search_of_everything(path, scope):
    stored, rows = read_segment(FIXTURES / "format-2-lists.segment"), format_2_rows()
    segment = SealedSegment(stored.key, stored.rows, lists=stored.lists)
    index = VectorIndex(config(probe_count=1, candidate_count=300, exact_count=300), sealed=[segment])
    live = (rows.expire_times > NOW) & ((rows.scopes == 3) | (scope is None))
    for query in unit_vectors(9, seed=6):
        distances = exact_distances(rows.vectors, query)
        result = index.search(request(query, path=path, scope=scope, threshold=2.0, radii=ALL_RADII))
        assert ids_of(result) == nearest_ids(rows.entry_ids, distances, k=5, live=live)
        assert (result.path, result.candidates_examined) == (path, np.count_nonzero(live))


def test_file_of_format_2_with_lists_without_margins_stays_readable():
    segment = read_segment(FIXTURES / "format-2.segment")
    assert (segment.cache, segment.key) == ("demo", SegmentKey(7, "text", "0123456789abcdef"))
    assert segment.rows.entry_ids.tolist() == [12, 40, 11]
    assert segment.rows.codes.tolist() == [[2**63], [5], [1]]
    assert [segment.rows.payloads[i] for i in range(3)] == [b"", b"third \x00", b"first"]
    assert segment.lists.bounds.tolist() == [0, 2, 2, 3]
    assert segment.lists.centroids.tolist() == [[0.60009765625, -0.7998046875], [-1.0, 0.0], [1.0, 0.0]]
    assert segment.lists.near(least=1, recall=0.9) is None


def test_file_of_format_1_stays_readable():
    segment = read_segment(FIXTURES / "format-1.segment")
    rows = segment.rows
    assert segment.lists is None
    assert (segment.cache, segment.key) == ("demo", SegmentKey(7, "text", "0123456789abcdef"))
    assert rows.entry_ids.tolist() == [11, 12, 40]
    assert rows.vectors.tolist() == [[1.0, 0.0], [0.0, -1.0], [0.60009765625, 0.7998046875]]
    assert rows.codes.tolist() == [[1], [2**63], [5]]
    assert rows.label_codes.tolist() == [[9], [0], [10]]
    assert rows.label_mask.tolist() == [True, False, True]
    assert rows.scopes.tolist() == [0, 2**64 - 1, 3]
    assert rows.fingerprints.tolist() == [[0, 0], [1, 2**64 - 2], [5, 6]]
    assert rows.expire_times.tolist() == [NEVER, 1_700_000_000_000, NEVER]
    assert [rows.payloads[i] for i in range(3)] == [b"first", b"", b"third \x00"]
