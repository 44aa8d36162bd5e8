import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from index_rows import KEY, make_rows, unit_vectors

from index import (
    NEVER,
    DamagedSegmentError,
    InvalidRowsError,
    SealedSegment,
    SegmentKey,
    read_segment,
    write_segment,
)
from index.lists import InvertedLists
from index.rows import memory_bytes

FIXTURES = Path(__file__).parent / "fixtures"


def sample_rows(**columns):
    return make_rows([3, 5, 8, 13], payloads=[b"", b"\x00\xff", b"long " * 30, b"x"], **columns)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.segment"
    write_segment(path, cache="shop", key=KEY, rows=sample_rows())
    return path


LISTS = InvertedLists(
    centroids=unit_vectors(3, seed=4).astype(np.float16), bounds=np.array([0, 2, 2, 4], dtype=np.int64)
)


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
    assert len(header["columns"]) == 12
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


@pytest.mark.parametrize("list_count", [0, 1, 2, 4])
def test_header_that_does_not_fit_its_lists_is_refused(listed_path, list_count):
    listed_path.write_bytes(with_header(listed_path.read_bytes(), list_count=list_count))
    with pytest.raises(DamagedSegmentError):
        read_segment(listed_path)


def test_file_of_format_2_with_lists_stays_readable():
    segment = read_segment(FIXTURES / "format-2.segment")
    assert (segment.cache, segment.key) == ("demo", SegmentKey(7, "text", "0123456789abcdef"))
    assert segment.rows.entry_ids.tolist() == [12, 40, 11]
    assert segment.rows.codes.tolist() == [[2**63], [5], [1]]
    assert [segment.rows.payloads[i] for i in range(3)] == [b"", b"third \x00", b"first"]
    assert segment.lists.bounds.tolist() == [0, 2, 2, 3]
    assert segment.lists.centroids.tolist() == [[0.60009765625, -0.7998046875], [-1.0, 0.0], [1.0, 0.0]]


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
