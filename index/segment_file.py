"""The file of a sealed segment, format 1.

    8 bytes   magic b"NEARHIT1"
    uint32    size of the header in bytes
    uint32    CRC-32 of the header
    header    JSON: format_version, cache, key, row_count, dim, code_words, label_words,
              columns {name: {dtype, shape, offset, size_bytes, crc32}}
    columns   each at the next multiple of 64 bytes, gaps are zeros; `offset` counts from the first one

Numbers are little-endian. The header holds every column's checksum, so its own CRC-32 stands for the whole
file: a manifest that names it names exactly these bytes. The file ends with its last column.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.durable import write_durably
from index.errors import DamagedSegmentError, IndexFault, InvalidRowsError
from index.rows import COLUMN_TYPES, MappedPayloads, Rows, SegmentKey

MAGIC = b"NEARHIT1"
FORMAT_VERSION = 1
ALIGNMENT = 64
_PREAMBLE = struct.Struct("<8sII")  # magic, header size, header CRC-32
_PAYLOAD_TYPES: dict[str, np.dtype[Any]] = {
    "payload_bounds": np.dtype(np.int64),
    "payload_bytes": np.dtype(np.uint8),
}
_TYPES = {
    name: dtype.newbyteorder("<") for name, dtype in (COLUMN_TYPES | _PAYLOAD_TYPES).items()
}  # as stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentFile:
    """What a segment file holds. `checksum`: CRC-32 of its header, which stands for the whole file."""

    cache: str
    key: SegmentKey
    rows: Rows
    size_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    name: str
    shape: tuple[int, ...]
    parts: Sequence[bytes | memoryview]


def write_segment(path: Path, *, cache: str, key: SegmentKey, rows: Rows) -> tuple[int, int]:
    """Write rows, ascending by entry id, to `path`, durably and all or nothing.

    Returns (size_bytes, checksum). Raises: InvalidRowsError.
    """
    if not rows.is_ascending:
        raise InvalidRowsError(f"{key}: entry ids of a sealed segment must ascend")
    if (rows.codes is None) != (key.encoder_id is None):
        raise InvalidRowsError(f"{key}: rows have codes if and only if they have an encoder")
    columns = _columns(rows)
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
            "columns": described,
        }
    ).encode()
    preamble = _PREAMBLE.pack(MAGIC, len(header), zlib.crc32(header))
    write_durably(path, _file_parts(preamble + header, columns, described))
    return _aligned(len(preamble) + len(header)) + end, zlib.crc32(header)


def read_segment(path: Path) -> SegmentFile:
    """Read a segment file: arrays are copied to memory, payloads stay mapped; every checksum is verified.

    Raises: DamagedSegmentError, naming the path and what is wrong.
    """
    file, header, columns_start, checksum = _open(path)
    try:
        key = SegmentKey(**header["key"])
        described: Mapping[str, Mapping[str, Any]] = header["columns"]
        _check_layout(path, header, key, described, file_size=len(file) - columns_start)
        arrays = {
            name: _read_column(path, file, name, column, columns_start)
            for name, column in described.items()
            if name != "payload_bytes"
        }
        bounds = arrays.pop("payload_bounds").astype(np.int64)
        blob = described["payload_bytes"]
        _check_bytes(path, file, "payload_bytes", blob, columns_start)
        if bounds[0] != 0 or np.any(bounds[1:] < bounds[:-1]) or bounds[-1] != blob["size_bytes"]:
            raise DamagedSegmentError(path, "column payload_bounds does not cut payload_bytes into rows")
        payloads = MappedPayloads(file, column_start=columns_start + blob["offset"], bounds=bounds)
        rows = Rows.from_columns(arrays, payloads=payloads)
        cache = str(header["cache"])
    except DamagedSegmentError:
        raise
    except (KeyError, TypeError, ValueError, IndexFault) as error:
        raise DamagedSegmentError(path, f"header: {error!r}") from error
    if not rows.is_ascending:
        raise DamagedSegmentError(path, "column entry_ids does not ascend")
    return SegmentFile(cache=cache, key=key, rows=rows, size_bytes=len(file), checksum=checksum)


def _columns(rows: Rows) -> list[_Column]:
    columns = [
        _Column(name=name, shape=array.shape, parts=[np.ascontiguousarray(array, dtype=_TYPES[name]).data])
        for name, array in rows.columns.items()
    ]
    payloads = [rows.payloads[offset] for offset in range(len(rows))]
    bounds = np.cumsum([0, *(len(payload) for payload in payloads)], dtype=_TYPES["payload_bounds"])
    columns.append(_Column(name="payload_bounds", shape=bounds.shape, parts=[bounds.data]))
    columns.append(_Column(name="payload_bytes", shape=(int(bounds[-1]),), parts=payloads))
    return columns


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
    if version != FORMAT_VERSION:
        raise DamagedSegmentError(path, f"format version {version!r}, this version reads {FORMAT_VERSION}")
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


def _read_column(
    path: Path, file: mmap, name: str, column: Mapping[str, Any], columns_start: int
) -> NDArray[Any]:
    _check_bytes(path, file, name, column, columns_start)
    count = int(np.prod(column["shape"], dtype=np.int64))
    stored = np.frombuffer(file, dtype=_TYPES[name], count=count, offset=columns_start + column["offset"])
    # astype copies and turns to the machine's own byte order; the mapping is not referred to any more.
    return stored.reshape(column["shape"]).astype(_TYPES[name].newbyteorder("="))


def _check_bytes(path: Path, file: mmap, name: str, column: Mapping[str, Any], columns_start: int) -> None:
    """Verify a column's checksum, and that the gap up to the next one is zero."""
    start = columns_start + column["offset"]
    stop = start + column["size_bytes"]
    if zlib.crc32(memoryview(file)[start:stop]) != column["crc32"]:
        raise DamagedSegmentError(path, f"column {name} does not match its checksum")
    if any(file[stop : columns_start + _aligned(stop - columns_start)]):
        raise DamagedSegmentError(path, f"bytes behind column {name}")


def _crc32(parts: Sequence[bytes | memoryview]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
