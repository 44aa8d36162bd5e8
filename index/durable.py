"""Files that are there in full or not at all, also after a crash."""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

READ_BYTES = 1024 * 1024


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `parts` one after the other: temporary name, fsync, rename, fsync of the directory."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """fsync a file that another library wrote."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """fsync a directory, so that names created or renamed in it survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_crc32(path: Path) -> int:
    """CRC-32 of a whole file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
