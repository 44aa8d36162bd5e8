"""Files that appear in a worker's inbox: loaded once, whatever dies on the way, or refused."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, select

from hashing.config import EncoderConfig
from hashing.trainer import no_progress
from scripts.inbox_rows import load_inbox_file
from service import jobs, registry, store
from service.application import clock_ms
from service.categories import create_category
from service.config import Config, load_config
from service.database import migrate, open_engine, reading, writing
from service.errors import NotFoundError
from service.inbox import FileReport, InboxFile, RefusedFileError
from service.learning import train_from_store
from service.records import JobRecord, ModalitySpec, Selection
from service.rows import read_cache, read_caches, read_jobs
from service.tables import entries
from service.transaction import CacheTransaction
from service.worker import Worker

DIM = 8


@dataclass(frozen=True, slots=True)
class Inbox:
    """A store with cache "faq", and an inbox folder of it."""

    engine: Engine
    config: Config

    @property
    def folder(self) -> Path:
        """Where files for the category "billing" go."""
        return Path(self.config.update.inbox) / "faq" / "billing"

    def worker(self, **changed: Any) -> Worker:
        """A worker; `load` instead of the real loader."""
        loader = changed.get("load", partial(load_inbox_file, config=self.config))
        return Worker(self.engine, self.config, clock=changed.get("clock", clock_ms), load_file=loader)

    def poll(self, worker: Worker) -> None:
        """What a worker does in two polls."""
        worker.enqueue_files()
        worker.enqueue_files()
        while worker.run_one():
            pass

    def put(self, name: str, rows: list[dict[str, Any]] | bytes) -> Path:
        """A file of the inbox."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def names(self) -> list[str]:
        """Ids of what is stored, in order."""
        with reading(self.engine) as connection:
            return list(connection.execute(select(entries.c.name).order_by(entries.c.id)).scalars())

    def jobs(self) -> list[JobRecord]:
        """Newest first."""
        with reading(self.engine) as connection:
            return read_jobs(connection, read_cache(connection, "faq").id)

    def files(self) -> set[str]:
        """All files of the category, below its folder."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def inbox(config_path: Path, tmp_path: Path) -> Iterator[Inbox]:
    """A store of SQLite with an empty cache, and an inbox."""
    config = load_config(config_path, environment={})
    update = replace(config.update, inbox=str(tmp_path / "inbox"), inbox_max_mib=1, min_labelled_rows=4)
    config = replace(config, update=replace(update, max_map_drop=1.0))
    Path(update.inbox).mkdir()
    engine = open_engine(replace(config.store, durability="normal"))
    migrate(engine)
    with writing(engine) as connection:
        registry.create_cache(
            connection,
            "faq",
            modalities={"text": ModalitySpec(dim=DIM)},
            code_bits=64,
            label_bits=64,
            description="",
            now_ms=0,
        )
    yield Inbox(engine, config)
    engine.dispose()


def rows_of(count: int, *, first: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """Rows without an id."""
    drawn = np.random.default_rng(first).standard_normal((count, DIM))
    return [
        {"embedding": row.tolist(), "response": f"r{first + i}", **columns} for i, row in enumerate(drawn)
    ]


def test_a_file_is_loaded_once_it_no_longer_changes(inbox: Inbox) -> None:
    worker = inbox.worker()
    path = inbox.put("rows.jsonl", rows_of(2))
    assert worker.enqueue_files() == 0
    path.write_text(path.read_text() + json.dumps(rows_of(1, first=9)[0]))  # it grows
    assert [worker.enqueue_files() for _ in range(3)] == [0, 1, 1]
    assert [job.state for job in inbox.jobs()] == [jobs.QUEUED]
    assert (worker.run_one(), worker.run_one()) == (True, False)
    assert (len(inbox.names()), inbox.files()) == (3, {"loaded/rows.jsonl"})
    (job,) = inbox.jobs()
    assert (job.kind, job.source, job.state) == (jobs.LOAD, "faq/billing/rows.jsonl", jobs.SUCCEEDED)
    assert json.loads(job.report) == {"stored_count": 3, "skipped_count": 0}
    assert [worker.enqueue_files() for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("name", [".rows.jsonl", "rows.jsonl.partial", "rows.txt", "rows"])
def test_an_unfinished_file_and_one_of_another_kind_are_left_alone(inbox: Inbox, name: str) -> None:
    inbox.put(name, rows_of(2))
    inbox.poll(inbox.worker())
    assert (inbox.names(), inbox.files()) == ([], {name})


def test_a_link_is_left_alone(inbox: Inbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text(json.dumps(rows_of(1)[0]))
    inbox.folder.mkdir(parents=True)
    (inbox.folder / "rows.jsonl").symlink_to(outside)
    inbox.poll(inbox.worker())
    assert (inbox.names(), outside.exists()) == ([], True)


def test_rows_of_two_files_without_ids_are_all_stored_and_of_the_same_file_once(inbox: Inbox) -> None:
    worker = inbox.worker()
    inbox.put("a.jsonl", rows_of(3))
    inbox.put("b.jsonl", rows_of(3, first=5))
    inbox.poll(worker)
    assert len(set(inbox.names())) == 6
    inbox.put("a.jsonl", rows_of(3))
    inbox.put("c.jsonl", rows_of(3))
    inbox.poll(worker)
    assert len(inbox.names()) == 6
    loaded = {"loaded/a.jsonl", "loaded/a-2.jsonl", "loaded/b.jsonl", "loaded/c.jsonl"}
    assert inbox.files() == loaded
    assert json.loads(inbox.jobs()[0].report) == {"stored_count": 0, "skipped_count": 3}


def test_the_same_content_in_two_categories_is_stored_in_both(inbox: Inbox) -> None:
    path = inbox.put("a.jsonl", rows_of(3))
    other = inbox.folder.with_name("sales")
    other.mkdir()
    (other / "a.jsonl").write_bytes(path.read_bytes())
    inbox.poll(inbox.worker())
    assert len(set(inbox.names())) == 6
    assert [json.loads(job.report)["stored_count"] for job in inbox.jobs()] == [3, 3]


def test_npz_npy_and_parquet_are_loaded_as_well(inbox: Inbox) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra train")
    parquet = pytest.importorskip("pyarrow.parquet")
    inbox.folder.mkdir(parents=True)
    drawn = np.random.default_rng(0).standard_normal((6, DIM))
    np.savez(inbox.folder / "a.npz", embeddings=drawn[:2], id=["x", "y"])
    np.save(inbox.folder / "b.npy", drawn[2:4])
    parquet.write_table(arrow.table({"embedding": drawn[4:].tolist()}), inbox.folder / "c.parquet")
    inbox.poll(inbox.worker())
    assert (len(inbox.names()), inbox.names()[:2]) == (6, ["x", "y"])
    assert inbox.files() == {"loaded/a.npz", "loaded/b.npy", "loaded/c.parquet"}


def _cut(path: Path) -> None:
    np.savez(path, embeddings=np.ones((50, DIM)))
    path.write_bytes(path.read_bytes()[:900])


def _unpacked_is_large(path: Path) -> None:
    np.savez_compressed(path, embeddings=np.ones((40_000, DIM)))


def _unpacked_parquet_is_large(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra train")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"embedding": np.ones((40_000, DIM)).tolist()})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1024 * 1024


def _header_changed(path: Path, *, place: int, value: bytes) -> None:
    """A field of the archive's member, in its own header and in the directory."""
    np.savez(path, embeddings=np.ones((50, DIM)))
    content = bytearray(path.read_bytes())
    for signature, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        start = content.find(signature) + place + shift
        content[start : start + len(value)] = value
    path.write_bytes(bytes(content))


_encrypted = partial(_header_changed, place=6, value=b"\x01\x00")
_unknown_compression = partial(_header_changed, place=8, value=b"\x63\x00")


@pytest.mark.parametrize(
    ("name", "rows", "why"),
    [
        ("rows.jsonl", [{"embedding": [1.0, 2.0]}], "has 2 dimensions, cache faq has 8 dimensions"),
        ("rows.jsonl", [*rows_of(1), {"embedding": [float("nan")] * DIM}], "row 1: the embedding holds NaN"),
        ("rows.jsonl", b'{"embedding": [1, 2', "line 1 is not JSON"),
        ("rows.jsonl", b"", "no rows"),
        ("rows.jsonl", b"x" * (1024 * 1024 + 1), "1048577 bytes, at most 1 MiB"),
        ("rows.npz", _cut, "rows.npz: "),
        ("rows.npz", _unpacked_is_large, "bytes, at most 1 MiB"),
        ("rows.parquet", _unpacked_parquet_is_large, "bytes, at most 1 MiB"),
        ("rows.npz", _encrypted, "encrypted"),
        ("rows.npz", _unknown_compression, "compression"),
        ("rows.jsonl", b"[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_with_the_reason(
    inbox: Inbox, name: str, rows: Any, why: str
) -> None:
    if callable(rows):
        rows(inbox.put(name, b""))
    else:
        inbox.put(name, rows)
    inbox.poll(inbox.worker())
    assert (inbox.names(), inbox.files()) == ([], {f"refused/{name}", f"refused/{name}.txt"})
    reason = (inbox.folder / "refused" / f"{name}.txt").read_text()
    assert why in reason and reason.startswith(f"faq/billing/{name}")
    (job,) = inbox.jobs()
    assert (job.state, job.error) == (jobs.FAILED, reason.strip())


def test_a_corrected_file_is_taken_at_once(inbox: Inbox) -> None:
    worker = inbox.worker()
    inbox.put("rows.jsonl", b"{")
    inbox.poll(worker)
    inbox.put("rows.jsonl", rows_of(2))
    inbox.poll(worker)
    assert (len(inbox.names()), "loaded/rows.jsonl" in inbox.files()) == (2, True)


def test_a_file_of_no_cache_is_refused_and_makes_none(inbox: Inbox) -> None:
    folder = Path(inbox.config.update.inbox) / "other" / "billing"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text(json.dumps(rows_of(1)[0]))
    inbox.poll(inbox.worker())
    assert "there is no cache 'other'" in (folder / "refused" / "rows.jsonl.txt").read_text()
    assert (inbox.names(), inbox.jobs()) == ([], [])


def test_a_cache_that_is_deleted_before_its_file_is_read_is_not_made_anew(inbox: Inbox) -> None:
    path = inbox.put("rows.jsonl", rows_of(1))
    file = InboxFile(path=path, cache="gone", category="billing")
    with pytest.raises(NotFoundError):
        load_inbox_file(inbox.engine, file, no_progress, config=inbox.config)
    with reading(inbox.engine) as connection:
        assert [cache.name for cache in read_caches(connection)] == ["faq"]


def test_a_category_is_made_where_its_name_can_be_one(inbox: Inbox) -> None:
    inbox.put("rows.jsonl", rows_of(1))
    bad = inbox.folder.with_name("No Name")
    bad.mkdir()
    (bad / "rows.jsonl").write_text(json.dumps(rows_of(1)[0]))
    inbox.poll(inbox.worker())
    assert len(inbox.names()) == 1
    assert "'No Name' is not an id" in (bad / "refused" / "rows.jsonl.txt").read_text()


class _DeadError(BaseException):
    """Stands for kill -9: nothing of the worker goes on."""


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_load_that_dies_at_any_write_is_finished_by_another_without_a_row_twice(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("scripts.row_files.BATCH_ROWS", 2)
    inbox.put("rows.jsonl", rows_of(5))
    begun, alive = clock_ms(), [True]
    first = inbox.worker(clock=lambda: begun)
    first.enqueue_files()
    first.enqueue_files()
    commits = []

    def die(_connection: object) -> None:
        commits.append(1)
        if alive[0] and len(commits) == at:
            raise _DeadError

    event.listen(inbox.engine, "commit", die)
    with pytest.raises(_DeadError):
        first.run_one()
        raise _DeadError  # it had fewer writes
    alive[0] = False
    lease_ms = int(inbox.config.update.lease_seconds * 1000)
    inbox.poll(inbox.worker(clock=lambda: begun + lease_ms + 1))
    assert len(set(inbox.names())) == len(inbox.names()) == 5
    assert (inbox.files(), inbox.jobs()[0].state) == ({"loaded/rows.jsonl"}, jobs.SUCCEEDED)


def test_a_worker_that_died_after_moving_the_file_has_its_job_finished(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.put("rows.jsonl", rows_of(5))
    begun = clock_ms()
    first = inbox.worker(clock=lambda: begun)
    first.enqueue_files()
    first.enqueue_files()
    keep_loaded = InboxFile.keep_loaded

    def die(file: InboxFile) -> None:
        keep_loaded(file)
        raise _DeadError

    monkeypatch.setattr(InboxFile, "keep_loaded", die)
    with pytest.raises(_DeadError):
        first.run_one()
    monkeypatch.undo()
    inbox.poll(inbox.worker(clock=lambda: begun + 10**6))
    (job,) = inbox.jobs()
    assert (job.state, json.loads(job.report)["stored_count"]) == (jobs.SUCCEEDED, 5)


def test_a_file_that_is_taken_away_fails_its_job(inbox: Inbox) -> None:
    path = inbox.put("rows.jsonl", rows_of(1))
    worker = inbox.worker()
    worker.enqueue_files()
    worker.enqueue_files()
    path.unlink()
    assert worker.run_one()
    assert (inbox.jobs()[0].state, inbox.files()) == (jobs.FAILED, set())
    assert "is no longer in the inbox" in inbox.jobs()[0].error


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), MemoryError("too large")])
def test_what_is_not_the_files_fault_leaves_it_for_a_later_attempt(inbox: Inbox, raised: Exception) -> None:
    inbox.put("rows.jsonl", rows_of(2))
    fail = [True]

    def load(engine: Engine, file: InboxFile, progress: Any) -> FileReport:
        if fail[0]:
            raise raised
        return load_inbox_file(engine, file, progress, config=inbox.config)

    now_ms = clock_ms() + 1000
    inbox.poll(inbox.worker(load=load, clock=lambda: now_ms))
    assert (inbox.files(), inbox.jobs()[0].state) == ({"rows.jsonl"}, jobs.FAILED)
    fail[0] = False
    inbox.poll(inbox.worker(load=load, clock=lambda: now_ms + 1000))
    assert len(inbox.jobs()) == 1, "not before retry_seconds"
    later_ms = now_ms + int(inbox.config.update.retry_seconds * 1000)
    inbox.poll(inbox.worker(load=load, clock=lambda: later_ms))
    assert (inbox.files(), len(inbox.names())) == ({"loaded/rows.jsonl"}, 2)


def test_a_file_that_may_not_be_read_is_refused(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.put("rows.jsonl", rows_of(1))
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == "rows.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    inbox.poll(inbox.worker())
    monkeypatch.undo()
    assert "Permission denied" in (inbox.folder / "refused" / "rows.jsonl.txt").read_text()


def test_a_folder_that_files_cannot_be_moved_in_fails_the_job_and_says_so(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.put("rows.jsonl", rows_of(1))

    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    worker = inbox.worker(clock=lambda: clock_ms() + 1000)
    inbox.poll(worker)
    inbox.poll(worker)
    (job,) = inbox.jobs()
    assert (job.state, len(inbox.names())) == (jobs.FAILED, 1)
    assert "Permission denied" in job.error


def _refuse_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(Path, "rename", refuse)


def _delete(inbox: Inbox, name: str) -> None:
    with writing(inbox.engine) as connection:
        tx = CacheTransaction.lock(connection, read_cache(connection, "faq").id, now_ms=clock_ms())
        assert store.invalidate(tx, Selection(names=(name,))) == 1


@pytest.mark.parametrize("died", [False, True])
def test_rows_deleted_after_only_the_move_failed_stay_deleted(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, *, died: bool
) -> None:
    inbox.put("rows.jsonl", rows_of(3))
    begun = clock_ms() + 1000

    def die(_file: InboxFile) -> None:
        raise _DeadError

    if died:
        monkeypatch.setattr(InboxFile, "keep_loaded", die)
        with pytest.raises(_DeadError):
            inbox.poll(inbox.worker(clock=lambda: begun))
    else:
        _refuse_renames(monkeypatch)
        inbox.poll(inbox.worker(clock=lambda: begun))
    gone = inbox.names()[0]
    _delete(inbox, gone)
    if not died:
        inbox.poll(inbox.worker(clock=lambda: begun + 10**6))  # the move fails again
    monkeypatch.undo()
    inbox.poll(inbox.worker(clock=lambda: begun + 2 * 10**6))
    assert (gone in inbox.names(), len(inbox.names())) == (False, 2)
    assert (inbox.files(), inbox.jobs()[0].state) == ({"loaded/rows.jsonl"}, jobs.SUCCEEDED)
    assert json.loads(inbox.jobs()[0].report) == {"stored_count": 3, "skipped_count": 0}


def test_a_corrected_file_whose_predecessor_was_not_moved_is_loaded(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = inbox.put("rows.jsonl", rows_of(3))
    before = path.stat()
    begun = clock_ms() + 1000
    _refuse_renames(monkeypatch)
    inbox.poll(inbox.worker(clock=lambda: begun))
    monkeypatch.undo()
    changed = path.read_bytes().replace(b"r0", b"r9")
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # only its content tells it apart
    inbox.poll(inbox.worker(clock=lambda: begun + 10**6))
    assert (len(inbox.names()), inbox.files()) == (6, {"loaded/rows.jsonl"})


def test_a_file_that_is_loaded_again_on_purpose_brings_deleted_rows_back(inbox: Inbox) -> None:
    path = inbox.put("rows.jsonl", rows_of(3))
    worker = inbox.worker()
    inbox.poll(worker)
    _delete(inbox, inbox.names()[0])
    (inbox.folder / "loaded" / "rows.jsonl").rename(path)
    inbox.poll(worker)
    assert len(inbox.names()) == 3


@pytest.mark.parametrize("refused", [False, True])
def test_a_file_that_takes_the_place_of_one_that_is_read_is_loaded_next(
    inbox: Inbox, *, refused: bool
) -> None:
    inbox.put("rows.jsonl", rows_of(2))

    def load(engine: Engine, file: InboxFile, progress: Any) -> FileReport:
        report = load_inbox_file(engine, file, progress, config=inbox.config)
        inbox.put(".next", rows_of(3, first=7)).rename(file.path)
        if refused:
            raise RefusedFileError("it is of no use")
        return report

    inbox.poll(inbox.worker(load=load))
    assert (inbox.files(), len(inbox.names())) == ({"rows.jsonl"}, 2)
    inbox.poll(inbox.worker())
    assert (inbox.files(), len(inbox.names())) == ({"loaded/rows.jsonl"}, 5)


def test_a_name_that_is_not_utf8_is_left_alone_with_one_warning(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    path = inbox.put(os.fsdecode(b"caf\xe9.jsonl"), rows_of(2))
    inbox.put("rows.jsonl", rows_of(3, first=5))
    worker = inbox.worker()
    inbox.poll(worker)
    inbox.poll(worker)
    assert (path.exists(), len(inbox.names())) == (True, 3)
    assert caplog.text.count("its name is not UTF-8") == 1


def test_a_file_that_cannot_be_queued_does_not_hold_up_the_others(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.put("a.jsonl", rows_of(2))
    inbox.put("b.jsonl", rows_of(3, first=5))
    enqueue = jobs.enqueue

    def fail(*arguments: Any, source: str, **named: Any) -> JobRecord:
        if source.endswith("a.jsonl"):
            raise ValueError("unforeseen")
        return enqueue(*arguments, source=source, **named)

    monkeypatch.setattr(jobs, "enqueue", fail)
    inbox.poll(inbox.worker())
    assert (inbox.files(), len(inbox.names())) == ({"a.jsonl", "loaded/b.jsonl"}, 3)
    assert "no load of faq/billing/a.jsonl can be queued" in caplog.text


def test_an_error_of_text_that_is_no_unicode_does_not_end_the_worker(inbox: Inbox) -> None:
    inbox.put("rows.jsonl", rows_of(1))

    def load(engine: Engine, file: InboxFile, progress: object) -> FileReport:
        raise RefusedFileError("half a pair: \ud800")

    inbox.poll(inbox.worker(load=load))
    assert "\\ud800" in inbox.jobs()[0].error
    assert "\\ud800" in (inbox.folder / "refused" / "rows.jsonl.txt").read_text()


def test_a_row_over_the_categorys_bytes_refuses_the_file(inbox: Inbox) -> None:
    with writing(inbox.engine) as connection:
        create_category(connection, "faq", "billing", own={"max_bytes": 500}, now_ms=0)
    inbox.put("rows.jsonl", rows_of(1, response="x" * 1000))
    inbox.poll(inbox.worker())
    reason = (inbox.folder / "refused" / "rows.jsonl.txt").read_text()
    assert "exceeds the category's quota of 500" in reason


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.npz", "rows.npy"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_cannot_be_read_now_is_tried_again(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    path = inbox.put(name, rows_of(2))
    if name != "rows.jsonl":
        save = np.savez if name == "rows.npz" else np.save
        save(path, np.array([row["embedding"] for row in rows_of(2)]))

    def fail(*_arguments: Any, **_named: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("numpy.load", fail)
    monkeypatch.setattr("json.loads", fail)
    inbox.poll(inbox.worker(clock=lambda: clock_ms() + 1000))
    monkeypatch.undo()
    (job,) = inbox.jobs()
    assert (job.state, inbox.files()) == (jobs.FAILED, {name})
    assert os.strerror(number) in job.error


def test_a_full_store_fails_the_load_and_keeps_the_file(inbox: Inbox) -> None:
    inbox.put("rows.jsonl", rows_of(40, response="x" * 2000))

    def limit(connection: Any, _record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    inbox.engine.dispose()
    event.listen(inbox.engine, "connect", limit)
    inbox.poll(inbox.worker())
    (job,) = inbox.jobs()
    assert (job.state, inbox.names(), inbox.files()) == (jobs.FAILED, [], {"rows.jsonl"})
    assert "disk is full" in job.error


@pytest.mark.parametrize("running", [False, True])
def test_a_file_whose_load_is_cancelled_is_refused(inbox: Inbox, *, running: bool) -> None:
    inbox.put("rows.jsonl", rows_of(2))

    def load(engine: Engine, file: InboxFile, progress: Callable[[str, int, int], None]) -> FileReport:
        cancel()
        progress("load", 0, 2)
        raise AssertionError("it was cancelled")

    def cancel() -> None:
        with writing(inbox.engine) as connection:
            name = inbox.jobs()[0].name
            jobs.cancel(connection, read_cache(connection, "faq"), name, now_ms=clock_ms() + 1000)

    worker = inbox.worker(load=load)
    worker.enqueue_files()
    worker.enqueue_files()
    if running:
        assert worker.run_one()
    else:
        cancel()
    inbox.poll(worker)
    (job,) = inbox.jobs()
    assert (job.state, inbox.names()) == (jobs.CANCELLED, [])
    assert "was cancelled" in (inbox.folder / "refused" / "rows.jsonl.txt").read_text()


def test_a_file_that_workers_die_of_is_refused(inbox: Inbox) -> None:
    inbox.put("rows.jsonl", rows_of(2))

    def load(engine: Engine, file: InboxFile, progress: object) -> FileReport:
        raise _DeadError

    now_ms = clock_ms() + 1000
    for attempt in range(jobs.MAX_ATTEMPTS):
        worker = inbox.worker(load=load, clock=lambda at=now_ms + attempt * 10**6: at)  # type: ignore[misc]
        worker.enqueue_files()
        worker.enqueue_files()
        with pytest.raises(_DeadError):
            worker.run_one()
    last = inbox.worker(load=load, clock=lambda: now_ms + jobs.MAX_ATTEMPTS * 10**6)
    inbox.poll(last)
    inbox.poll(last)
    assert "its worker died 3 times" in (inbox.folder / "refused" / "rows.jsonl.txt").read_text()
    assert len(inbox.jobs()) == 1


def test_two_workers_load_a_file_once(inbox: Inbox) -> None:
    inbox.put("rows.jsonl", rows_of(3))
    first, second = inbox.worker(), inbox.worker()
    for worker in (first, second, first, second):
        worker.enqueue_files()
    assert [first.run_one(), second.run_one()] == [True, False]
    assert (len(inbox.jobs()), len(inbox.names())) == (1, 3)


def test_a_file_that_another_worker_has_just_moved_is_not_queued_again(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = inbox.put("rows.jsonl", rows_of(3))
    late, enqueue = inbox.worker(), jobs.enqueue
    late.enqueue_files()

    def enqueue_late(*arguments: Any, **named: Any) -> JobRecord:
        path.unlink()
        return enqueue(*arguments, **named)

    monkeypatch.setattr(jobs, "enqueue", enqueue_late)
    assert (late.enqueue_files(), inbox.jobs()) == (0, [])


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.put("rows.jsonl", rows_of(3))
    inbox.folder.with_name("another").mkdir()
    listed = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "another":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    inbox.poll(inbox.worker())
    assert len(inbox.names()) == 3
    assert "another cannot be read" in caplog.text


def test_labelled_rows_of_a_file_make_an_update_due(inbox: Inbox) -> None:
    worker = inbox.worker()
    inbox.put("rows.jsonl", rows_of(20, labels=["a"]) + rows_of(20, first=50, labels=["b"]))
    inbox.poll(worker)
    assert worker.enqueue_due() == 0  # there is no encoder yet
    config = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=64)
    trained = train_from_store(inbox.engine, "faq", config=config, modality="text", progress=None, now_ms=1)
    with writing(inbox.engine) as connection:
        cache_id = read_cache(connection, "faq").id
        registry.activate_encoder(connection, cache_id, trained.encoder_id, max_live_encoders=4)
    inbox.put("more.jsonl", rows_of(6, first=90, labels=["c"]))
    inbox.poll(worker)
    assert worker.enqueue_due() == 1
    assert worker.run_one()
    assert json.loads(inbox.jobs()[0].report)["new_labels"] == ["c"]


def test_an_inbox_that_is_gone_does_not_stop_the_worker(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    Path(inbox.config.update.inbox).rmdir()
    assert inbox.worker().enqueue_files() == 0
    assert "the inbox cannot be read" in caplog.text
