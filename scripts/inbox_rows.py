"""A file of a worker's inbox into the store, as a build loads one."""

import argparse
import errno
import hashlib
import zipfile
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import Engine

from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.load_rows import check_file, load_file
from scripts.row_files import UNREADABLE
from service.config import Config
from service.errors import InvalidRequestError, QuotaExceededError
from service.inbox import FileReport, InboxFile, RefusedFileError

_MIB = 1024 * 1024


def load_inbox_file(engine: Engine, file: InboxFile, progress: Progress, *, config: Config) -> FileReport:
    """Store the rows of a file whose cache exists; nothing unless every row is valid.

    Rows without an id get one of the file's content, its cache and category, and their number, so that no row
    is stored twice, however often the same file is loaded. progress: told of "check" and "load", in rows; may
    raise to stop.
    Raises: RefusedFileError: it is larger than `[update] inbox_max_mib`, also once unpacked, cannot be read
        for what it holds, or has rows that the cache cannot hold. NotFoundError: the cache was deleted.
        OSError: it cannot be read now.
    """
    arguments = argparse.Namespace(
        input=file.path,
        cache=file.cache,
        category=file.category,
        rename=[],
        texts=None,
        embedder_id="",
    )
    try:
        _check_size(file.path, most_mib=config.update.inbox_max_mib)
        digest = file.digest()
        rows, _ = check_file(arguments, config=config, progress=progress)
        named = replace(rows, id_prefix=f"file-{_place_digest(file, digest)}")
        report = load_file(engine, named, arguments, config=config, progress=progress, may_create=False)
    except QuotaExceededError as error:
        reason = f"{file.source}: {error.message}; rows of earlier batches stay"
        raise RefusedFileError(reason) from error
    except (CommandError, InvalidRequestError, PermissionError) as error:
        if isinstance(error.__cause__, OSError) and not _is_of_content(error.__cause__):
            raise error.__cause__ from None
        raise RefusedFileError(str(error).replace(str(file.path), file.source)) from error
    return FileReport(stored_count=report.stored_count, skipped_count=report.skipped_count, digest=digest)


def _is_of_content(error: OSError) -> bool:
    """Whether reading fails however often it is tried: it may not be read, or is damaged.

    Errors without a number are those of decompressors and pyarrow; EINVAL is an offset of a damaged archive.
    """
    return error.errno is None or error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL)


def _check_size(path: Path, *, most_mib: int) -> None:
    """Raise CommandError for a file that is too large, or becomes so once unpacked, as it says itself."""
    size = path.stat().st_size
    try:
        size = max(size, _unpacked_bytes(path))
    except UNREADABLE as error:
        raise CommandError(f"{path}: {error}") from error
    if size > most_mib * _MIB:
        raise CommandError(f"{path}: {size} bytes, at most {most_mib} MiB ([update] inbox_max_mib)")


def _unpacked_bytes(path: Path) -> int:
    """0 for a file that is not packed, and for one that will not be read at all."""
    if path.suffix == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    if path.suffix == ".parquet" and find_spec("pyarrow") is not None:
        found = import_module("pyarrow.parquet").read_metadata(path)
        return sum(int(found.row_group(i).total_byte_size) for i in range(found.num_row_groups))
    return 0


def _place_digest(file: InboxFile, digest: str) -> str:
    """Of content, cache and category: the same rows may be wanted in two of them."""
    place = f"{file.cache}/{file.category}/{digest}"
    return hashlib.sha256(place.encode()).hexdigest()[:32]
