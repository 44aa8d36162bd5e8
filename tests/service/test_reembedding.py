"""Embedding entries anew: by a worker, beside builds and stores, and what is forgotten afterwards."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders_at_work import train
from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from sqlalchemy import Engine, select
from store_rows import new_entry
from two_embedders import (
    COUNT,
    NEW,
    OLD,
    WORLD,
    Vectors,
    fill,
    finish,
    move,
    name_of,
    opened,
    problems,
    start,
    takes,
)
from waiting import eventually

from service import generations, jobs, store
from service.accesses import AccessLog
from service.application import clock_ms
from service.cache import SemanticCache
from service.config import Config, EmbedderConfig
from service.database import open_engine, reading, writing
from service.embedder import Embedder, patient
from service.embedder_migration import abort_migration
from service.embedding import Input, embed_inputs
from service.errors import EmbedderUnavailableError, InvalidRequestError, PreconditionError
from service.feed import read_changes
from service.forget_report import forget
from service.forgetting import ForgetSelection
from service.generations import build_index
from service.lookup import LookupQuery
from service.records import JobRecord
from service.reembedding import BATCH_ROWS, reembed_texts
from service.replica import CacheReplica
from service.rows import read_cache, read_jobs
from service.server import Server
from service.tables import entries, learned_rows
from service.transaction import CacheTransaction
from service.update import run_update
from service.worker import Worker

# The new embedder as a process: question i becomes its row i. It notes its start.
EMBEDDER = """
import json, struct, sys
import numpy as np

def write(content):
    sys.stdout.buffer.write(struct.pack("<I", len(content)) + content)
    sys.stdout.buffer.flush()

folder, embedder_id = sys.argv[1:]
open(folder + "/started", "a").write("x")
rows = np.load(folder + "/new.npy")
write(json.dumps({"embedder_id": embedder_id, "dim": rows.shape[1]}).encode())
while head := sys.stdin.buffer.read(4):
    texts = json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
    made = rows[[int(text.split()[1]) for text in texts]].astype("<f4")
    write(struct.pack("<I", made.shape[1]) + made.tobytes())
"""


@pytest.fixture
def client(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> Client:
    """A server whose cache "faq" holds the entries of the old embedder."""
    made = connect(start_server(sqlite_config))
    fill(made)
    return made


@pytest.fixture
def engine(sqlite_config: Config) -> Iterator[Engine]:
    """The database of the server."""
    opened_engine = open_engine(sqlite_config.store)
    yield opened_engine
    opened_engine.dispose()


@pytest.fixture
def embedder_of(tmp_path: Path) -> Iterator[Callable[[str], Embedder]]:
    """Embedders as processes, under an id."""
    made: list[Embedder] = []
    script = tmp_path / "embedder.py"
    script.write_text(EMBEDDER)
    np.save(tmp_path / "new.npy", WORLD.new)

    def make(embedder_id: str) -> Embedder:
        command = (sys.executable, str(script), str(tmp_path), embedder_id)
        made.append(Embedder(patient(EmbedderConfig(model="minilm", start_seconds=60.0)), command=command))
        return made[-1]

    yield make
    for embedder in made:
        embedder.stop()


def enqueue(engine: Engine) -> JobRecord:
    with writing(engine) as connection:
        record = read_cache(connection, "faq")
        return jobs.enqueue(connection, record.id, kind=jobs.REEMBED, source=NEW, now_ms=clock_ms())


def job_of(engine: Engine) -> JobRecord:
    """The newest one."""
    with reading(engine) as connection:
        return read_jobs(connection, read_cache(connection, "faq").id)[0]


def moved_names(client: Client) -> set[str]:
    return {own.name for own in client.list_entries("faq") if own.embedder_id == NEW}


def worker(engine: Engine, config: Config, embedder: Embedder | None) -> Worker:
    return Worker(engine, config, clock=clock_ms, embedder=embedder)


def test_only_a_worker_of_the_new_embedder_takes_the_job(
    client: Client,
    engine: Engine,
    sqlite_config: Config,
    embedder_of: Callable[[str], Embedder],
    tmp_path: Path,
) -> None:
    assert start(sqlite_config).accepted
    embedder = embedder_of(NEW)
    own = worker(engine, sqlite_config, embedder)
    assert not own.run_one()
    assert not (tmp_path / "started").exists()  # a model is loaded for a job that needs it
    enqueue(engine)
    assert not worker(engine, sqlite_config, None).run_one()
    assert not worker(engine, sqlite_config, embedder_of(OLD)).run_one()
    assert job_of(engine).state == jobs.QUEUED
    assert own.run_one()
    job = job_of(engine)
    assert (job.state, job.stage, job.total_count) == ("succeeded", "embed", COUNT)
    assert json.loads(job.report) == {
        "moved_count": COUNT,
        "left_count": 0,
        "unknown_count": 0,
        "evicted_count": 0,
        "failed_count": 0,
    }
    assert len(moved_names(client)) == COUNT and problems(sqlite_config) == ()


def test_texts_are_of_the_space_of_the_embedder_that_embeds_them(
    client: Client, engine: Engine, sqlite_config: Config, embedder_of: Callable[[str], Embedder]
) -> None:
    assert start(sqlite_config).accepted
    with reading(engine) as connection:
        record = read_cache(connection, "faq")
    inputs = [
        Input(text="question 3"),
        Input(embedding=WORLD.old[3], embedder_id=OLD, text="question 3"),
        Input(text="question 4", embedder_id=NEW),
    ]
    embedder = embedder_of(NEW)
    made = embed_inputs(record, inputs, embedder=embedder, timeout_seconds=60.0)
    assert [own.space for own in made] == ["text:2", "text", "text:2"]
    for own, expected in zip(made, (WORLD.new[3], WORLD.old[3], WORLD.new[4]), strict=True):
        assert np.allclose(own.vector, expected, atol=1e-6)
    for asked, by in (
        (Input(text="question 3", embedder_id=OLD), embedder),
        (Input(text="question 3"), embedder_of("third")),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            embed_inputs(record, [asked], embedder=by, timeout_seconds=60.0)
        assert refused.value.reason == "EMBEDDER_MISMATCH"


def test_text_that_names_another_embedder_is_refused_whatever_is_stored(
    client: Client, engine: Engine, sqlite_config: Config, embedder_of: Callable[[str], Embedder]
) -> None:
    assert start(sqlite_config).accepted
    embedder = embedder_of(NEW)
    embedder.start()
    accesses = AccessLog(max_entries=100, max_distances=100)
    cache = SemanticCache(accesses=accesses, embedder=embedder, clock=clock_ms, min_seq_wait_seconds=1.0)
    with reading(engine) as connection:
        record = read_cache(connection, "faq")
    replica = CacheReplica(engine, record, search=sqlite_config.search, data_dir=sqlite_config.store.data_dir)

    def ask(text: str, **fields: Any) -> str:
        query = LookupQuery(category="billing", source=Input(text=text, **fields))
        (answer,) = cache.lookup(replica, [query], timeout_seconds=60.0)
        return answer.reason.value

    for text in ("question 3", "asked 3"):  # one is stored, the other is not
        with pytest.raises(InvalidRequestError, match=f"embeds texts by '{NEW}', not by '{OLD}'") as refused:
            ask(text, embedder_id=OLD)
        assert refused.value.reason == "EMBEDDER_MISMATCH"
        assert ask(text, embedder_id=NEW) in ("fingerprint", "within_threshold")
    assert ask("question 3", embedding=WORLD.old[9], embedder_id=OLD) == "fingerprint"


def test_texts_that_the_embedder_fails_at_stay_and_are_counted(
    client: Client, engine: Engine, sqlite_config: Config, embedder_of: Callable[[str], Embedder]
) -> None:
    assert start(sqlite_config).accepted
    fields = {"embedding": WORLD.old[7], "embedder_id": OLD, "response": b""}
    for text in ("poison pill", "poison 9999"):  # the process dies of them
        client.store("faq", "billing", text=text, entry=text.replace(" ", "-"), **fields)
    enqueue(engine)
    assert worker(engine, sqlite_config, embedder_of(NEW)).run_one()
    job = job_of(engine)
    assert job.state == jobs.SUCCEEDED
    report = json.loads(job.report)
    assert (report["moved_count"], report["left_count"], report["failed_count"]) == (COUNT, 2, 2)
    assert len(moved_names(client)) == COUNT and problems(sqlite_config) == ()


@pytest.mark.parametrize(("good", "calls"), [(0, 1 + 8), (1, 1 + 3), (2, 2 + 3)])
def test_embedder_that_stops_answering_ends_the_job_soon(
    client: Client, engine: Engine, sqlite_config: Config, good: int, calls: int
) -> None:
    assert start(sqlite_config).accepted
    asked: list[int] = []

    def embed(texts: Sequence[str]) -> Vectors:
        asked.append(len(texts))
        if len(asked) > good:
            raise EmbedderUnavailableError("gone")
        return WORLD.new[[int(text.split()[1]) for text in texts]]

    with pytest.raises(EmbedderUnavailableError, match="gone"):
        reembed_texts(
            engine,
            "faq",
            embedder_id=NEW,
            embed=embed,
            clock=clock_ms,
            progress=lambda _stage, _done, _total: None,
        )
    assert len(asked) == calls
    assert len(moved_names(client)) == BATCH_ROWS * good


def test_vector_that_is_no_embedding_fails_its_text_alone(
    client: Client, engine: Engine, sqlite_config: Config
) -> None:
    assert start(sqlite_config).accepted

    def embed(texts: Sequence[str]) -> Vectors:
        made = WORLD.new[[int(text.split()[1]) for text in texts]].copy()
        made[[text in ("question 0", "question 399") for text in texts]] = np.nan
        return made

    report = reembed_texts(
        engine,
        "faq",
        embedder_id=NEW,
        embed=embed,
        clock=clock_ms,
        progress=lambda _stage, _done, _total: None,
    )
    assert (report.moved_count, report.left_count, report.failed_count) == (COUNT - 2, 2, 2)
    assert problems(sqlite_config) == ()


def test_embedder_that_does_not_start_is_tried_again_later_and_holds_up_no_other_job(
    client: Client, engine: Engine, sqlite_config: Config, tmp_path: Path
) -> None:
    train(sqlite_config, client, cache="faq", with_graph=False)
    assert start(sqlite_config).accepted
    note = f"open({str(tmp_path / 'started')!r}, 'a').write('x')"
    command = (sys.executable, "-c", note)
    embedder = Embedder(EmbedderConfig(model="minilm", start_seconds=60.0), command=command)
    now_ms = clock_ms()
    own = Worker(engine, sqlite_config, clock=lambda: now_ms, embedder=embedder)

    def starts() -> int:
        return len((tmp_path / "started").read_text()) if (tmp_path / "started").exists() else 0

    enqueue(engine)
    with writing(engine) as connection:
        record = read_cache(connection, "faq")
        jobs.enqueue(connection, record.id, kind=jobs.UPDATE, now_ms=now_ms)
    assert own.run_one()
    assert (job_of(engine).kind, job_of(engine).state in (jobs.QUEUED, jobs.RUNNING)) == (jobs.UPDATE, False)
    assert starts() == 0
    retry_ms = int(1000 * sqlite_config.update.retry_seconds)
    for passed_ms, expected in ((0, 1), (retry_ms - 1, 1), (1, 2), (1, 2)):
        now_ms += passed_ms
        assert not own.run_one()
        assert starts() == expected
    embedder.stop()


def test_embedder_is_not_started_for_a_job_that_another_worker_holds(
    client: Client,
    engine: Engine,
    sqlite_config: Config,
    embedder_of: Callable[[str], Embedder],
    tmp_path: Path,
) -> None:
    assert start(sqlite_config).accepted
    enqueue(engine)
    now_ms = clock_ms()
    with writing(engine) as connection:
        assert jobs.lease(connection, owner="other", now_ms=now_ms, lease_ms=60_000, embedder_id=NEW)
    own = Worker(engine, sqlite_config, clock=lambda: now_ms, embedder=embedder_of(NEW))
    assert not own.run_one()
    assert not (tmp_path / "started").exists()
    now_ms += 60_000  # it died
    assert own.run_one()
    assert job_of(engine).state == jobs.SUCCEEDED


def test_cancelled_job_keeps_what_it_moved_and_the_next_one_goes_on(
    client: Client, engine: Engine, sqlite_config: Config, embedder_of: Callable[[str], Embedder]
) -> None:
    assert start(sqlite_config).accepted
    cancelled = enqueue(engine)
    embedder = embedder_of(NEW)
    embed, batches = embedder.embed, []

    def cancel_at_the_second(texts: list[str], *, timeout_seconds: float) -> object:
        batches.append(len(texts))
        if len(batches) == 2:
            with writing(engine) as connection:
                jobs.cancel(connection, read_cache(connection, "faq"), cancelled.name, now_ms=clock_ms())
        return embed(texts, timeout_seconds=timeout_seconds)

    embedder.embed = cancel_at_the_second  # type: ignore[method-assign, assignment]
    late = iter(range(clock_ms(), 2**60, 1100))  # progress is written every second
    assert Worker(engine, sqlite_config, clock=lambda: next(late), embedder=embedder).run_one()
    assert job_of(engine).state == jobs.CANCELLED
    moved = len(moved_names(client))
    assert moved == sum(batches) < COUNT and problems(sqlite_config) == ()
    enqueue(engine)
    assert worker(engine, sqlite_config, embedder).run_one()
    assert json.loads(job_of(engine).report)["moved_count"] == COUNT - moved
    assert len(moved_names(client)) == COUNT


def test_job_ends_with_the_change_that_it_is_of(
    client: Client, engine: Engine, sqlite_config: Config, embedder_of: Callable[[str], Embedder]
) -> None:
    assert start(sqlite_config).accepted
    enqueue(engine)
    abort_migration(engine, "faq", modality="text", clock=clock_ms)
    assert job_of(engine).state == jobs.CANCELLED
    enqueue(engine)  # as one that was queued between two statements of its own
    assert worker(engine, sqlite_config, embedder_of(NEW)).run_one()
    assert (job_of(engine).state, "no change of the embedder" in job_of(engine).error) == ("failed", True)
    assert not moved_names(client)


def test_entries_stored_while_others_are_embedded_are_moved_too(
    client: Client, engine: Engine, sqlite_config: Config, embedder_of: Callable[[str], Embedder]
) -> None:
    assert start(sqlite_config).accepted
    enqueue(engine)
    embedder = embedder_of(NEW)
    embed, seen = embedder.embed, []

    def store_meanwhile(texts: list[str], *, timeout_seconds: float) -> object:
        if not seen:
            client.delete_entry("faq", texts[0].replace("question ", "e"))
            fields = {"embedding": WORLD.old[7], "embedder_id": OLD, "response": b"", "entry": "late"}
            client.store("faq", "billing", text="late 7", **fields)
        seen.extend(texts)
        return embed(texts, timeout_seconds=timeout_seconds)

    embedder.embed = store_meanwhile  # type: ignore[method-assign, assignment]
    assert worker(engine, sqlite_config, embedder).run_one()
    assert json.loads(job_of(engine).report)["left_count"] == 0
    assert "caches/faq/entries/late" in moved_names(client)
    assert len(moved_names(client)) == COUNT and problems(sqlite_config) == ()


def test_code_made_of_an_old_vector_is_not_written_to_a_moved_entry(
    client: Client, engine: Engine, sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(sqlite_config, client, cache="faq", with_graph=False)
    client.store(
        "faq", "billing", embedding=WORLD.old[0], embedder_id=OLD, entry="x", response=b"", text="x 0"
    )
    with writing(engine) as connection:
        connection.execute(entries.update().values(code=None, encoder_id=None))
    assert start(sqlite_config).accepted
    encode, done = generations.code_rows, []

    def move_meanwhile(*arguments: object, **options: object) -> object:
        if not done:
            done.append(move(sqlite_config, range(50)))
        return encode(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(generations, "code_rows", move_meanwhile)
    built = build_index(
        engine,
        "faq",
        search=sqlite_config.search,
        data_dir=sqlite_config.store.data_dir,
        with_graph=False,
        reencode=False,
        memory_limit_bytes=2**28,
        progress=lambda _stage, _done, _total: None,
        now_ms=clock_ms(),
    )
    assert (done, built.coded_count) == ([(50, 0)], COUNT + 1 - 50)
    assert problems(sqlite_config) == ()


def test_store_into_a_space_that_was_removed_meanwhile_is_refused(
    client: Client, engine: Engine, sqlite_config: Config
) -> None:
    assert start(sqlite_config).accepted
    with reading(engine) as connection:
        record = read_cache(connection, "faq")
        category_id = connection.execute(select(entries.c.category_id).limit(1)).scalar_one()

    def stored(space: str) -> None:
        vector = (WORLD.new if space == "text:2" else WORLD.old)[0].astype(np.float16)
        item = new_entry(category_id, f"in-{space}", vector=vector, modality=space, code_bytes=8)
        with writing(engine) as connection:
            tx = CacheTransaction.lock(connection, record.id, now_ms=clock_ms())
            store.store_entries(tx, [item])

    stored("text:2")
    finish(sqlite_config, drop_rest=True)
    with pytest.raises(PreconditionError, match="no longer takes embeddings"):
        stored("text")
    stored_names = {own.name for own in client.list_entries("faq")}
    assert stored_names == {"caches/faq/entries/in-text:2"}
    assert problems(sqlite_config) == ()


def test_follower_that_does_not_know_the_new_space_yet_takes_its_rows(
    client: Client, engine: Engine, sqlite_config: Config
) -> None:
    with reading(engine) as connection:
        before = read_cache(connection, "faq")
    assert start(sqlite_config).accepted
    move(sqlite_config, [1, 2])
    with reading(engine) as connection:
        page = read_changes(connection, before, after=before.seq)
    assert page is not None
    ((key, rows),) = page.changes.upserts
    assert (key.modality, len(rows), rows.dim) == ("text:2", 2, WORLD.new.shape[1])


def test_rows_learned_before_and_after_a_change_are_forgotten_from_both(
    client: Client, engine: Engine, sqlite_config: Config
) -> None:
    train(sqlite_config, client, cache="faq", with_graph=False)
    with reading(engine) as connection:
        first = read_cache(connection, "faq").active_encoder_id
    assert start(sqlite_config).accepted
    move(sqlite_config, range(COUNT))
    finish(sqlite_config)
    train(sqlite_config, client, cache="faq", with_graph=False, modality="text:2")
    with reading(engine) as connection:
        kept = connection.execute(select(learned_rows.c.name, learned_rows.c.modality)).all()
        second = read_cache(connection, "faq").active_encoder_id
    spaces: dict[str, set[str]] = {}
    for row in kept:
        spaces.setdefault(row.name, set()).add(row.modality)
    assert len(spaces) > 100 and set(map(frozenset, spaces.values())) == {frozenset({"text", "text:2"})}

    names = sorted(spaces)[:20]
    report = forget(
        engine,
        "faq",
        ForgetSelection(names=tuple(names)),
        config=sqlite_config,
        clock=clock_ms,
        progress=lambda _stage, _done, _total: None,
        prove=True,
    )
    assert report.problems == () and report.changes.learned_row_count == 20
    assert set(report.changes.destroyed) == {first, second}
    (proof,) = report.proofs
    assert proof.row_count == len(spaces) - 20 and proof.max_difference is not None
    assert proof.max_difference < 1e-3 and proof.query_bits_changed == 0
    assert problems(sqlite_config) == ()
    assert not {name_of(int(name[1:])) for name in names} & {own.name for own in client.list_entries("faq")}


def test_opened_generation_of_before_holds_no_old_rows(
    client: Client,
    engine: Engine,
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
) -> None:
    train(sqlite_config, client, cache="faq", with_graph=True)
    assert start(sqlite_config).accepted
    move(sqlite_config, range(COUNT))
    finish(sqlite_config)
    with opened(sqlite_config):
        late = connect(start_server(sqlite_config))  # opens the generation of before the change
    answer = late.lookup("faq", "billing", embedding=WORLD.asked_new[3])
    assert (answer.entry, answer.generation != "") == (name_of(3), True)
    request = admin_pb.GetIndexRequest(name="caches/faq/index")
    for own in (client, late):  # what is left of the old space is let go, tombstones and all
        eventually(lambda own=own: _rows_held(own.call(own.admin.GetIndex, request)) == COUNT)
    assert problems(sqlite_config) == ()


def _rows_held(index: admin_pb.Index) -> int:
    return sum(segment.row_count for segment in index.segments)


def test_labelled_rows_of_the_new_embedder_make_no_update_of_the_old_encoder_due(
    client: Client, engine: Engine, sqlite_config: Config
) -> None:
    train(sqlite_config, client, cache="faq", with_graph=False)
    own = worker(engine, sqlite_config, None)
    assert start(sqlite_config).accepted
    move(sqlite_config, range(COUNT))
    fields = {"embedder_id": NEW, "labels": ["l0"], "response": b""}
    eventually(lambda: takes(client, WORLD.new[0], NEW))
    for i in range(120):
        client.store("faq", "billing", embedding=WORLD.new[i], **fields)
    assert own.enqueue_due() == 0
    finish(sqlite_config)
    assert own.enqueue_due() == 0
    with pytest.raises(PreconditionError, match="train one anew"):
        run_update(engine, "faq", config=sqlite_config.update, max_live_encoders=4, clock=clock_ms)
    train(sqlite_config, client, cache="faq", with_graph=False, modality="text:2")
    for i in range(120):
        client.store("faq", "billing", embedding=WORLD.new[i], **fields)
    assert own.enqueue_due() == 1 and own.run_one()
    assert job_of(engine).state == jobs.SUCCEEDED and "encoder_id" in job_of(engine).report
    assert problems(sqlite_config) == ()


def test_lookups_of_two_spaces_are_no_measure_of_what_is_usual(
    client: Client, engine: Engine, sqlite_config: Config
) -> None:
    def measured() -> int:
        """Distances that lookups of the old embedder leave for the shift monitor."""
        accesses = AccessLog(max_entries=100, max_distances=100)
        cache = SemanticCache(accesses=accesses, embedder=None, clock=clock_ms, min_seq_wait_seconds=1.0)
        with reading(engine) as connection:
            record = read_cache(connection, "faq")
        replica = CacheReplica(
            engine, record, search=sqlite_config.search, data_dir=sqlite_config.store.data_dir
        )
        for i in range(5):
            source = Input(embedding=WORLD.asked_old[i], embedder_id=OLD)
            (answer,) = cache.lookup(
                replica, [LookupQuery(category="billing", source=source)], timeout_seconds=5.0
            )
            assert answer.is_hit
        return len(accesses.measured_categories())

    assert measured() == 1
    assert start(sqlite_config).accepted
    assert measured() == 0
