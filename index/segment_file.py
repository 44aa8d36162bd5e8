"""The file of a sealed segment, format 2.

    8 bytes   magic b"NEARHIT1"
    uint32    size of the header in bytes
    uint32    CRC-32 of the header
    header    JSON: format_version, cache, key, row_count, dim, code_words, label_words, list_count,
              columns {name: {dtype, shape, offset, size_bytes, crc32}}
    columns   each at the next multiple of 64 bytes, gaps are zeros; `offset` counts from the first one

Numbers are little-endian. The header holds every column's checksum, so its own CRC-32 stands for the whole
file: a manifest that names it names exactly these bytes. The file ends with its last column.

With list_count over 0 there are the columns list_bounds and centroids, mostly distance_margins and
recall_margins too (files without are read, not written), and entry ids ascend within each list; without,
entry ids ascend. Format 1 has no list_count and never lists; it is read, not written.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.durable import write_durably
from index.errors import DamagedSegmentError, IndexFault, InvalidRowsError
from index.list_margins import DISTANCE_COUNT, RECALLS, ListMargins
from index.lists import InvertedLists
from index.rows import COLUMN_TYPES, MappedPayloads, Payloads, Rows, SegmentKey

MAGIC = b"NEARHIT1"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
ALIGNMENT = 64
PAYLOADS_PER_WRITE = 4_096
_PREAMBLE = struct.Struct("<8sII")  # magic, header size, header CRC-32
_OTHER_TYPES: dict[str, np.dtype[Any]] = {
    "list_bounds": np.dtype(np.int64),
    "distance_margins": np.dtype(np.float32),
    "recall_margins": np.dtype(np.float32),
    "centroids": np.dtype(np.float16),
    "payload_bounds": np.dtype(np.int64),
    "payload_bytes": np.dtype(np.uint8),
}
_TYPES = {name: dtype.newbyteorder("<") for name, dtype in (COLUMN_TYPES | _OTHER_TYPES).items()}  # as stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentFile:
    """What a segment file holds. `lists`: over exactly these rows, or None. `checksum`: CRC-32 of its header,
    which stands for the whole file."""

    cache: str
    key: SegmentKey
    rows: Rows
    lists: InvertedLists | None
    size_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    name: str
    shape: tuple[int, ...]
    parts: Iterable[bytes | memoryview]  # gone through twice: for the checksum, and to write


@dataclass(frozen=True, slots=True)
class _JoinedPayloads:
    """Payloads joined a few thousand at a time, anew at every iteration: never all in memory twice."""

    payloads: Payloads

    def __iter__(self) -> Iterator[bytes]:
        count = len(self.payloads)
        for start in range(0, count, PAYLOADS_PER_WRITE):
            stop = min(start + PAYLOADS_PER_WRITE, count)
            yield b"".join([self.payloads[offset] for offset in range(start, stop)])


def write_segment(
    path: Path, *, cache: str, key: SegmentKey, rows: Rows, lists: InvertedLists | None = None
) -> tuple[int, int]:
    """Write rows to `path`, durably and all or nothing.

    rows: ascending by entry id; with `lists`, grouped by list and ascending within each.
    Returns (size_bytes, checksum). Raises: InvalidRowsError.
    """
    if problem := _order_problem(rows, lists):
        raise InvalidRowsError(f"{key}: {problem}")
    if (rows.codes is None) != (key.encoder_id is None):
        raise InvalidRowsError(f"{key}: rows have codes if and only if they have an encoder")
    columns = _columns(rows, lists)
    described: dict[str, dict[str, Any]] = {}
    end = 0
    for column in columns:
        start = _aligned(end)
        size = int(np.prod(column.shape, dtype=np.int64)) * _TYPES[column.name].itemsize
        described[column.name] = {
            "dtype": _TYPES[column.name].str,
            "shape": column.shape,
            "offset": start,
            "size_bytes": size,
            "crc32": _crc32(column.parts),
        }
        end = start + size
    header = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "cache": cache,
            "key": {
                "category_id": key.category_id,
                "modality": key.modality,
                "encoder_id": key.encoder_id,
            },
            "row_count": len(rows),
            "dim": rows.dim,
            "code_words": 0 if rows.codes is None else rows.codes.shape[1],
            "label_words": rows.label_codes.shape[1],
            "list_count": 0 if lists is None else lists.list_count,
            "columns": described,
        }
    ).encode()
    preamble = _PREAMBLE.pack(MAGIC, len(header), zlib.crc32(header))
    write_durably(path, _file_parts(preamble + header, columns, described))
    return _aligned(len(preamble) + len(header)) + end, zlib.crc32(header)


def read_segment(path: Path) -> SegmentFile:
    """Read a segment file, every checksum verified: columns are read-only views of the mapped file.

    The views keep the mapping, and so the file's bytes, alive, also once the file is removed. Only lists are
    copied to memory. Raises: DamagedSegmentError, naming the path and what is wrong.
    """
    file, header, columns_start, checksum = _open(path)
    try:
        key = SegmentKey(**header["key"])
        described: Mapping[str, Mapping[str, Any]] = header["columns"]
        _check_layout(path, header, key, described, file_size=len(file) - columns_start)
        for name, column in described.items():
            _check_bytes(path, file, name, column, columns_start)
        arrays = {name: _view_column(file, name, column, columns_start) for name, column in described.items()}
        bounds, size_bytes = arrays.pop("payload_bounds"), arrays.pop("payload_bytes").size
        if bounds[0] != 0 or np.any(bounds[1:] < bounds[:-1]) or bounds[-1] != size_bytes:
            raise DamagedSegmentError(path, "column payload_bounds does not cut payload_bytes into rows")
        payloads_start = columns_start + described["payload_bytes"]["offset"]
        rows = Rows.from_columns(
            arrays, payloads=MappedPayloads(file, column_start=payloads_start, bounds=bounds)
        )
        lists = _lists_of(arrays)
        cache = str(header["cache"])
    except DamagedSegmentError:
        raise
    except (KeyError, TypeError, ValueError, IndexFault) as error:
        raise DamagedSegmentError(path, f"header: {error!r}") from error
    if problem := _order_problem(rows, lists):
        raise DamagedSegmentError(path, f"column entry_ids: {problem}")
    return SegmentFile(cache=cache, key=key, rows=rows, lists=lists, size_bytes=len(file), checksum=checksum)


def _order_problem(rows: Rows, lists: InvertedLists | None) -> str | None:
    """What is wrong with the order of the rows; None: nothing."""
    if lists is None:
        return None if rows.is_ascending else "entry ids of a sealed segment must ascend"
    if (lists.row_count, lists.dim) != (len(rows), rows.dim):
        return (
            f"lists of {lists.row_count} rows of {lists.dim} dimensions, they are {len(rows)} of {rows.dim}"
        )
    falls = np.flatnonzero(rows.entry_ids[1:] <= rows.entry_ids[:-1]) + 1
    return None if np.isin(falls, lists.bounds).all() else "entry ids must ascend within each list"


def _lists_of(arrays: Mapping[str, NDArray[Any]]) -> InvertedLists | None:
    """The lists that the columns hold, in memory of their own. Raises: DimensionError, InvalidRowsError."""
    if "list_bounds" not in arrays:
        return None
    margins = ListMargins.unknown()
    if "distance_margins" in arrays:
        margins = ListMargins(
            by_distance=arrays["distance_margins"].copy(), by_recall=arrays["recall_margins"].copy()
        )
    return InvertedLists(
        centroids=arrays["centroids"].copy(), bounds=arrays["list_bounds"].copy(), margins=margins
    )


def _columns(rows: Rows, lists: InvertedLists | None) -> list[_Column]:
    arrays = dict(rows.columns)
    if lists is not None:
        arrays |= {"list_bounds": lists.bounds, "centroids": lists.centroids}
        arrays["distance_margins"] = lists.margins.by_distance
        arrays["recall_margins"] = lists.margins.by_recall
    sizes = map(len, _each(rows.payloads))
    bounds = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(sizes, dtype=np.int64, count=len(rows)), out=bounds[1:])
    arrays["payload_bounds"] = bounds
    columns = [
        _Column(name=name, shape=array.shape, parts=[np.ascontiguousarray(array, dtype=_TYPES[name]).data])
        for name, array in arrays.items()
    ]
    payloads = _JoinedPayloads(rows.payloads)
    return [*columns, _Column(name="payload_bytes", shape=(int(bounds[-1]),), parts=payloads)]


def _each(payloads: Payloads) -> Iterator[bytes]:
    return (payloads[offset] for offset in range(len(payloads)))


def _file_parts(
    preface: bytes, columns: Sequence[_Column], described: Mapping[str, Mapping[str, Any]]
) -> Iterator[bytes | memoryview]:
    yield preface
    yield bytes(_aligned(len(preface)) - len(preface))
    end = 0
    for column in columns:
        yield bytes(described[column.name]["offset"] - end)
        yield from column.parts
        end = described[column.name]["offset"] + described[column.name]["size_bytes"]


def _open(path: Path) -> tuple[mmap, dict[str, Any], int, int]:
    """Map the file and verify preamble and header: (mapping, header, where columns start, header CRC-32)."""
    try:
        with path.open("rb") as handle:
            size = path.stat().st_size
            if size < _PREAMBLE.size:
                raise DamagedSegmentError(path, f"truncated: {size} bytes")
            file = mmap(handle.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise DamagedSegmentError(path, error.strerror or "cannot be read") from error
    magic, header_size, checksum = _PREAMBLE.unpack_from(file)
    if magic != MAGIC:
        raise DamagedSegmentError(path, f"not a segment file: magic {magic!r}")
    columns_start = _aligned(_PREAMBLE.size + header_size)
    text = file[_PREAMBLE.size : _PREAMBLE.size + header_size]
    if columns_start > size:
        raise DamagedSegmentError(path, "truncated within the header")
    if zlib.crc32(text) != checksum:
        raise DamagedSegmentError(path, "header does not match its checksum")
    if any(file[_PREAMBLE.size + header_size : columns_start]):
        raise DamagedSegmentError(path, "bytes between header and columns")
    try:
        header: dict[str, Any] = json.loads(text)
        version = header["format_version"]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedSegmentError(path, f"header: {error!r}") from error
    if version not in READABLE_VERSIONS:
        raise DamagedSegmentError(path, f"format version {version!r}, this version reads {READABLE_VERSIONS}")
    return file, header, columns_start, checksum


def _check_layout(
    path: Path,
    header: Mapping[str, Any],
    key: SegmentKey,
    described: Mapping[str, Mapping[str, Any]],
    *,
    file_size: int,
) -> None:
    """Compare the described columns with the ones that this key and these counts must have."""
    row_count = header["row_count"]
    tails = {"vectors": [header["dim"]], "label_codes": [header["label_words"]], "fingerprints": [2]}
    tails["codes"] = [header["code_words"]]
    shapes = {name: [row_count, *tails.get(name, [])] for name in COLUMN_TYPES}
    shapes["payload_bounds"] = [row_count + 1]
    shapes["payload_bytes"] = [described["payload_bytes"]["size_bytes"]]
    if key.encoder_id is None:
        del shapes["codes"]
    list_count = header["list_count"] if header["format_version"] > 1 else 0
    if list_count != 0:
        shapes |= {"list_bounds": [list_count + 1], "centroids": [list_count, header["dim"]]}
        if "distance_margins" in described:
            shapes |= {"distance_margins": [DISTANCE_COUNT], "recall_margins": [len(RECALLS)]}
    if set(described) != set(shapes):
        raise DamagedSegmentError(path, f"columns {sorted(described)}, expected {sorted(shapes)}")
    end = 0
    for name, column in described.items():
        size = int(np.prod(shapes[name], dtype=np.int64)) * _TYPES[name].itemsize
        expected = (_TYPES[name].str, shapes[name], _aligned(end), size)
        got = (column["dtype"], column["shape"], column["offset"], column["size_bytes"])
        if got != expected:
            raise DamagedSegmentError(path, f"column {name} is described as {got}, expected {expected}")
        end = _aligned(end) + size
    if file_size != end:
        raise DamagedSegmentError(path, f"columns take {file_size} bytes, the header says {end}")


def _view_column(file: mmap, name: str, column: Mapping[str, Any], columns_start: int) -> NDArray[Any]:
    """A view of the mapping; a copy only where the machine's byte order is not the file's."""
    offset = columns_start + column["offset"]
    stored: NDArray[Any] = np.ndarray(column["shape"], dtype=_TYPES[name], buffer=file, offset=offset)
    return stored.astype(_TYPES[name].newbyteorder("="), copy=False)


def _check_bytes(path: Path, file: mmap, name: str, column: Mapping[str, Any], columns_start: int) -> None:
    """Verify a column's checksum, and that the gap up to the next one is zero."""
    start = columns_start + column["offset"]
    stop = start + column["size_bytes"]
    if zlib.crc32(memoryview(file)[start:stop]) != column["crc32"]:
        raise DamagedSegmentError(path, f"column {name} does not match its checksum")
    if any(file[stop : columns_start + _aligned(stop - columns_start)]):
        raise DamagedSegmentError(path, f"bytes behind column {name}")


def _crc32(parts: Iterable[bytes | memoryview]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
