"""A file of a worker's inbox into the store, as a build loads one."""

import argparse
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Engine

from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.load_rows import check_file, load_file
from service.config import Config
from service.errors import InvalidRequestError
from service.inbox import FileReport, InboxFile, RefusedFileError

_MIB = 1024 * 1024


def load_inbox_file(engine: Engine, file: InboxFile, progress: Progress, *, config: Config) -> FileReport:
    """Store the rows of a file whose cache exists; nothing unless every row is valid.

    Rows without an id get one of the file's content and their number, so that no row is stored twice, however
    often the same file is loaded. progress: told of "check" and "load", in rows; may raise to stop.
    Raises: RefusedFileError: it is larger than `[update] inbox_max_mib`, also once unpacked, cannot be read,
        or has rows that the cache cannot hold. NotFoundError: the cache was deleted.
    """
    arguments = argparse.Namespace(
        input=file.path,
        cache=file.cache,
        category=file.category,
        rename=[],
        texts=None,
    )
    try:
        _check_size(file.path, most_mib=config.update.inbox_max_mib)
        digest = _digest(file.path)
        rows, _ = check_file(arguments, config=config, progress=progress)
        named = replace(rows, id_prefix=f"file-{digest}")
        report = load_file(engine, named, arguments, config=config, progress=progress, may_create=False)
    except (CommandError, InvalidRequestError, PermissionError, zipfile.BadZipFile) as error:
        raise RefusedFileError(str(error).replace(str(file.path), file.source)) from error
    return FileReport(stored_count=report.stored_count, skipped_count=report.skipped_count)


def _check_size(path: Path, *, most_mib: int) -> None:
    """Raise CommandError for a file that is too large, or becomes so once it is unpacked."""
    size = path.stat().st_size
    if path.suffix == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(member.file_size for member in archive.infolist()))
    if size > most_mib * _MIB:
        raise CommandError(f"{path}: {size} bytes, at most {most_mib} MiB ([update] inbox_max_mib)")


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32]
