"""Verdicts that instance codes learn from: recorded through a server, learned by command and by workers."""

import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearhit import Client
from nearhit.client import lookup_request, store_request
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from hashing.metrics import pair_auc
from scripts import pair_learning, run_worker
from scripts.__main__ import main
from scripts.pair_update import update_with_verdicts
from scripts.server_process import write_config
from service import jobs, registry, tables
from service.application import clock_ms
from service.check import check_cache
from service.config import Config, load_config
from service.database import open_engine, reading, writing
from service.errors import PreconditionError
from service.forgetting import ForgetSelection, forget_rows
from service.records import JobRecord
from service.rows import read_cache, read_encoders, read_jobs, read_weights
from service.server import Server
from service.worker import Worker

pytest.importorskip("torch", reason="needs the extra train")

Command = Callable[..., Any]
Vectors = NDArray[np.float32]

DIM = 32
SHARED = 16
"""Leading dimensions that say which two questions mean the same; the others are noise."""
ENTRIES = 600
VERDICTS = 1200


def draw(count: int, *, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def questions(about: Vectors, labels: NDArray[np.int64], *, seed: int) -> Vectors:
    """Of each entry one that shares its leading dimensions (1), or all others (0)."""
    shared = (np.arange(DIM) < SHARED) == (labels[:, None] == 1)
    rows = np.where(shared, about, draw(len(about), seed=seed))
    rows = rows + 0.02 * draw(len(about), seed=seed + 1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose cache "faq" has an encoder, and verdicts that it has not learned."""
    folder = tmp_path_factory.mktemp("made")
    path = write_config(folder)
    assert main(["migrate", "--config", str(path)]) == 0
    server = Server(load_config(path, environment={}))
    server.start()
    with Client(f"127.0.0.1:{server.port}") as client:
        client.create_cache("faq", dim=DIM)
        client.create_category("faq", "all", threshold=2.0)
        stored = draw(ENTRIES, seed=9)
        items = [
            store_request("faq", "all", embedding=row, entry=f"e{i}", scope=str(i), response=b"%d" % i)
            for i, row in enumerate(stored)
        ]
        for start in range(0, ENTRIES, 200):
            client.batch_store("faq", items[start : start + 200])
        assert main(["train", "--cache", "faq", "--activate", "--json", "--config", str(path)]) == 0
        assert main(["build", "--cache", "faq", "--json", "--config", str(path)]) == 0
        about, labels = np.arange(VERDICTS) % ENTRIES, (np.arange(VERDICTS) // ENTRIES) % 2
        judge(client, questions(stored[about], labels, seed=1), about, labels)
    server.stop()
    return folder


def judge(client: Client, asked: Vectors, about: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    """Look each question up in the scope of its entry, and give the verdict with it."""
    requests = [
        lookup_request("faq", "all", embedding=row, scope=str(entry))
        for row, entry in zip(asked, about, strict=True)
    ]
    answers = [
        answer
        for start in range(0, len(requests), 200)
        for answer in client.batch_lookup("faq", requests[start : start + 200])
    ]
    assert [answer.response for answer in answers] == [b"%d" % entry for entry in about]
    verdicts = (cache_pb.VERDICT_WRONG, cache_pb.VERDICT_RIGHT)

    def give(i: int) -> cache_pb.RecordFeedbackResponse:
        return client.record_feedback(answers[i].lookup_token, verdicts[labels[i]], embedding=asked[i])

    with ThreadPoolExecutor(16) as pool:
        assert all(given.recorded and given.query_kept for given in pool.map(give, range(len(asked))))


@pytest.fixture
def config_path(made: Path, tmp_path: Path) -> Path:
    """The configuration of a copy of that store."""
    path = write_config(tmp_path)
    for file in made.glob("nearhit.db*"):
        shutil.copy(file, tmp_path)
    return path


@pytest.fixture
def config(config_path: Path) -> Config:
    """The configuration that the commands read."""
    return load_config(config_path, environment={})


@pytest.fixture
def engine(config: Config) -> Iterator[Engine]:
    """The copy."""
    engine = open_engine(config.store)
    yield engine
    engine.dispose()


@pytest.fixture
def command(config_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `nearhit` in this process, for the JSON that it prints."""

    def run(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--config", str(config_path)]) == status
        printed = capsys.readouterr()
        return json.loads(printed.out) if "--json" in arguments and printed.out else printed

    return run


def worker_of(engine: Engine, config: Config, *, clock: Callable[[], int] = clock_ms) -> Worker:
    return Worker(engine, config, clock=clock, learn_pairs=partial(update_with_verdicts, config=config))


def active(engine: Engine) -> Encoder:
    with reading(engine) as connection:
        record = read_cache(connection, "faq")
        return load_encoder(read_weights(connection, record.id, str(record.active_encoder_id)))


def jobs_of(engine: Engine) -> list[JobRecord]:
    """Newest first."""
    with reading(engine) as connection:
        return read_jobs(connection, read_cache(connection, "faq").id)


def stored_codes(engine: Engine) -> dict[str, tuple[bytes, str]]:
    columns = (tables.entries.c.name, tables.entries.c.code, tables.entries.c.encoder_id)
    with reading(engine) as connection:
        return {name: (code, encoder) for name, code, encoder in connection.execute(select(*columns))}


def watermarks(engine: Engine) -> dict[str, int | None]:
    columns = (tables.encoders.c.encoder_id, tables.encoders.c.verdict_watermark)
    with reading(engine) as connection:
        return {row.encoder_id: row.verdict_watermark for row in connection.execute(select(*columns))}


def newest_verdict(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(select(func.max(tables.feedback.c.id))).scalar_one())


def keep_verdicts(engine: Engine, kept: Any) -> None:
    with writing(engine) as connection:
        connection.execute(delete(tables.feedback).where(~kept))


def auc_of(query_encoder: Encoder, stored_encoder: Encoder) -> float:
    """How well signs of the query's codes tell unseen questions about unseen entries, on stored codes."""
    about, labels = draw(1000, seed=77), np.arange(1000) % 2
    asked = questions(about, labels, seed=78)
    bits = stored_encoder.instance_bits(about, modality="text")
    agree = np.mean(query_encoder.instance_bits(asked, modality="text") == bits, axis=1)
    return pair_auc(agree, labels == 1)


def test_verdicts_are_learned_by_command_while_stored_codes_stay_and_lookups_go_on(
    engine: Engine, config: Config, command: Command
) -> None:
    parent, before = active(engine), stored_codes(engine)
    server = Server(replace(config, server=replace(config.server, address="127.0.0.1:0")))
    server.start()
    learned = command("update", "--cache", "faq", "--verdicts", "--json")
    child = active(engine)
    assert (learned["accepted"], learned["encoder_id"], child.parent_id) == (
        True,
        child.encoder_id,
        parent.encoder_id,
    )
    assert learned["pair_count"] + learned["validation_pair_count"] <= VERDICTS
    assert learned["child_auc_256"] > learned["parent_auc_256"] + 0.02
    assert auc_of(child, parent) > auc_of(parent, parent) + 0.02
    assert stored_codes(engine) == before
    assert watermarks(engine) == {parent.encoder_id: None, child.encoder_id: newest_verdict(engine)}
    with Client(f"127.0.0.1:{server.port}") as client:
        coded_by = ""
        while not coded_by.endswith(child.encoder_id):  # the server follows within moments
            stored = client.store("faq", "all", embedding=draw(1, seed=5)[0], response=b"new", scope="new")
            coded_by = stored.entry.encoder
        found = client.lookup("faq", "all", embedding=draw(ENTRIES, seed=9)[3], scope="3")
        assert (found.response, found.distance) == (b"3", pytest.approx(0, abs=1e-3))
    server.stop()
    assert check_cache(engine, "faq", config).problems == ()
    again = command("update", "--cache", "faq", "--verdicts", "--json", status=3)
    assert again["reasons"][0].startswith("0 verdicts with a query embedding wait")


def test_a_worker_learns_what_waits_once_and_a_rollback_stands(engine: Engine, config: Config) -> None:
    parent = active(engine).encoder_id
    worker = worker_of(engine, config)
    assert (worker.enqueue_due(), worker.enqueue_due()) == (1, 1)
    assert (worker.run_one(), worker.run_one()) == (True, False)
    (job,) = jobs_of(engine)
    report = json.loads(job.report)
    child = active(engine).encoder_id
    assert (job.kind, job.state, report["encoder_id"], report["accepted"]) == (
        "learn-pairs",
        jobs.SUCCEEDED,
        child,
        True,
    )
    assert report["stored_auc_256"] > report["parent_auc_256"]
    assert worker.enqueue_due() == 0
    with writing(engine) as connection:
        registry.roll_back_encoder(connection, read_cache(connection, "faq").id)
    assert (active(engine).encoder_id, worker.enqueue_due()) == (parent, 0)
    learned = update_with_verdicts(engine, "faq", lambda *_: None, config=config)
    assert (learned["encoder_id"], active(engine).encoder_id) == (child, child), (
        "learned again when asked for"
    )


@pytest.mark.parametrize(("least", "queued"), [(VERDICTS, 1), (VERDICTS + 1, 0), (0, 0)])
def test_learning_is_due_at_the_configured_count(
    engine: Engine, config: Config, least: int, queued: int
) -> None:
    asked = replace(config, update=replace(config.update, min_verdicts=least))
    assert worker_of(engine, asked).enqueue_due() == queued


def test_a_worker_without_torch_leaves_verdicts_to_others_and_says_so(
    engine: Engine,
    config: Config,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda _name: None)
        assert run_worker._pair_learner(config) is None
    assert [record.message for record in caplog.records] == [
        "torch is not installed: learning from verdicts is left to other workers"
    ]
    unable = Worker(engine, config, clock=clock_ms)
    assert unable.enqueue_due() == 0
    queued = command("update", "--cache", "faq", "--verdicts", "--queue", "--json")
    assert (queued["kind"], queued["state"]) == ("learn-pairs", "queued")
    assert not unable.run_one()
    assert worker_of(engine, config).run_one()
    assert jobs_of(engine)[0].state == jobs.SUCCEEDED


@pytest.mark.parametrize(
    ("right", "wrong", "counts"),
    [(600, 0, "600 right and 0 wrong"), (24, 600, "24 right and 600 wrong"), (0, 0, "0 right and 0 wrong")],
)
def test_too_few_verdicts_of_a_kind_are_left_for_later(
    engine: Engine, config: Config, command: Command, right: int, wrong: int, counts: str
) -> None:
    with reading(engine) as connection:
        ids = {
            kind: list(
                connection.execute(
                    select(tables.feedback.c.id).where(tables.feedback.c.verdict == kind)
                ).scalars()
            )
            for kind in ("right", "wrong")
        }
    keep_verdicts(engine, tables.feedback.c.id.in_(ids["right"][:right] + ids["wrong"][:wrong]))
    told = command("update", "--cache", "faq", "--verdicts", "--json", status=3)
    (reason,) = told["reasons"]
    assert f"{right + wrong} verdicts with a query embedding wait, {counts}: 25 of each kind" in reason
    eager = replace(config, update=replace(config.update, min_verdicts=1))
    assert worker_of(engine, eager).enqueue_due() == 0
    assert list(watermarks(engine).values()) == [None]


def test_verdicts_that_contradict_each_other_do_not_stop_the_others(engine: Engine, config: Config) -> None:
    with writing(engine) as connection:
        (row, *_) = connection.execute(select(tables.feedback).where(tables.feedback.c.verdict == "right"))
        values = {**row._mapping, "verdict": "wrong", "lookup_digest": b"another"}
        del values["id"]
        connection.execute(insert(tables.feedback).values(**values))
    learned = update_with_verdicts(engine, "faq", lambda *_: None, config=config)
    assert learned["accepted"]
    assert watermarks(engine)[learned["encoder_id"]] == newest_verdict(engine)


def test_verdicts_that_cannot_be_learned_from_are_not_read_again(
    engine: Engine, config: Config, command: Command
) -> None:
    """All are on one entry: no part can be held out."""
    with writing(engine) as connection:
        first = select(func.min(tables.entries.c.id)).scalar_subquery()
        connection.execute(update(tables.feedback).values(entry_id=first))
    (parent,) = watermarks(engine)
    worker = worker_of(engine, config)
    assert (worker.enqueue_due(), worker.run_one()) == (1, True)
    (job,) = jobs_of(engine)
    assert job.state == jobs.SUCCEEDED
    assert "are linked into 1 groups of rows" in json.loads(job.report)["reasons"][0]
    assert watermarks(engine) == {parent: newest_verdict(engine)}
    assert worker.enqueue_due() == 0
    assert "0 verdicts" in command("update", "--cache", "faq", "--verdicts", "--json", status=3)["reasons"][0]


def test_verdicts_that_codes_tell_apart_already_come_to_nothing_once(engine: Engine, config: Config) -> None:
    with writing(engine) as connection:
        judged = select(tables.feedback.c.id, tables.feedback.c.verdict, tables.entries.c.vector).join(
            tables.entries, tables.entries.c.id == tables.feedback.c.entry_id
        )
        for row in connection.execute(judged).all():
            about = np.frombuffer(row.vector, dtype=np.float16).astype(np.float32)
            asked = about + 0.01 * draw(1, seed=row.id)[0] if row.verdict == "right" else -about
            one = update(tables.feedback).where(tables.feedback.c.id == row.id)
            connection.execute(one.values(query_vector=asked.astype(np.float16).tobytes()))
    (parent,) = watermarks(engine)
    worker = worker_of(engine, config)
    assert (worker.enqueue_due(), worker.run_one(), worker.enqueue_due()) == (1, True, 0)
    report = json.loads(jobs_of(engine)[0].report)
    assert (report["encoder_id"], report["accepted"], report["parent_auc_256"]) == (None, False, 1.0)
    assert report["reasons"] == ["no pass was better than the active encoder on pairs that were held out"]
    assert watermarks(engine) == {parent: newest_verdict(engine)}


def test_what_the_gate_rejects_is_kept_with_its_figures_and_not_learned_again(
    engine: Engine, config: Config, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a gate that asks for more recall than there is."""
    gate = partial(pair_learning.evaluate_pair_update, recall_tolerance=-1.0)
    monkeypatch.setattr(pair_learning, "evaluate_pair_update", gate)
    parent = active(engine).encoder_id
    learned = command("update", "--cache", "faq", "--verdicts", "--json", status=4)
    assert "recall of neighbours falls" in learned["reasons"][0]
    assert (learned["accepted"], active(engine).encoder_id) == (False, parent)
    with reading(engine) as connection:
        kept = {own.encoder_id: own for own in read_encoders(connection, read_cache(connection, "faq").id)}
    assert kept[learned["encoder_id"]].state == registry.REJECTED
    assert kept[learned["encoder_id"]].metrics["pair_count"] == learned["pair_count"]
    eager = replace(config, update=replace(config.update, min_verdicts=50))
    assert worker_of(engine, eager).enqueue_due() == 0
    assert "0 verdicts" in command("update", "--cache", "faq", "--verdicts", "--json", status=3)["reasons"][0]


def test_verdicts_on_too_few_entries_to_judge_by_wait(
    engine: Engine, config: Config, command: Command
) -> None:
    with writing(engine) as connection:
        few = select(tables.entries.c.id).order_by(tables.entries.c.id).limit(60).scalar_subquery()
        connection.execute(delete(tables.entries).where(tables.entries.c.id.not_in(few)))
    before = watermarks(engine)
    told = command("update", "--cache", "faq", "--verdicts", "--json", status=3)
    assert "too few to judge by" in told["reasons"][0]
    assert watermarks(engine) == before


def test_an_update_that_read_a_forgotten_entry_is_not_kept(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that it has read for its verdict alone."""
    monkeypatch.setattr(pair_learning, "MAX_REHEARSED_ROWS", 90)
    monkeypatch.setattr(pair_learning, "MAX_GATE_ROWS", 60)
    before = watermarks(engine)
    base: list[pair_learning.PairBase] = []
    read_base = pair_learning.read_base

    def note(connection: Connection, cache: str) -> pair_learning.PairBase:
        base.append(read_base(connection, cache))
        return base[0]

    monkeypatch.setattr("scripts.pair_update.read_base", note)

    def meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "judge" and len(base) == 1:
            with reading(engine) as connection:
                rows = connection.execute(select(tables.entries.c.id, tables.entries.c.name)).all()
            unread = next(row.name for row in rows if row.id not in base[0].stored.row_ids)
            forget_rows(engine, "faq", ForgetSelection(names=(unread,)), clock=lambda: 1)
            base.append(base[0])

    with pytest.raises(PreconditionError) as raised:
        update_with_verdicts(engine, "faq", meanwhile, config=config)
    assert raised.value.reason == "ROWS_FORGOTTEN"
    assert watermarks(engine) == before


def test_a_job_that_is_cancelled_while_it_trains_changes_nothing(engine: Engine, config: Config) -> None:
    before, codes = watermarks(engine), stored_codes(engine)

    def learn_and_cancel(
        engine: Engine, cache: str, progress: Callable[[str, int, int], None], conclude: Any
    ) -> Any:
        def tell(stage: str, done: int, total: int) -> None:
            if stage == "train" and done:
                with writing(engine) as connection:
                    record = read_cache(connection, cache)
                    jobs.cancel(connection, record, jobs_of(engine)[0].name, now_ms=clock_ms())
                progress("cancelled", 0, 1)
            progress(stage, done, total)

        return update_with_verdicts(engine, cache, tell, conclude, config=config)

    worker = Worker(engine, config, clock=clock_ms, learn_pairs=learn_and_cancel)
    assert (worker.enqueue_due(), worker.run_one()) == (1, True)
    assert jobs_of(engine)[0].state == jobs.CANCELLED
    assert (watermarks(engine), stored_codes(engine)) == (before, codes)


def test_another_worker_learns_what_one_was_killed_over(
    engine: Engine, config: Config, config_path: Path, command: Command
) -> None:
    command("update", "--cache", "faq", "--verdicts", "--queue", "--json")
    killed = subprocess.Popen(
        [sys.executable, "-m", "scripts", "worker", "--once", "--config", str(config_path)],
        cwd=Path(__file__).parents[2],
    )
    try:
        while jobs_of(engine)[0].stage != "train":
            assert killed.poll() is None, "the worker ended"
            threading.Event().wait(0.02)
    finally:
        killed.kill()
        killed.wait()
    (job,) = jobs_of(engine)
    assert (job.state, len(watermarks(engine))) == (jobs.RUNNING, 1)
    later = worker_of(engine, config, clock=lambda: clock_ms() + int(config.update.lease_seconds * 1000))
    assert later.run_one()
    (job,) = jobs_of(engine)
    assert (job.state, job.attempt_count, active(engine).encoder_id) == (
        jobs.SUCCEEDED,
        2,
        json.loads(job.report)["encoder_id"],
    )


def test_an_encoder_that_became_active_meanwhile_stays(engine: Engine, config: Config) -> None:
    """Two that learn at once: the one that ends later is refused."""
    first: list[str] = []

    def meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "judge" and not first:
            first.append("")
            first[0] = update_with_verdicts(engine, "faq", lambda *_: None, config=config, seed=1)[
                "encoder_id"
            ]

    worker = Worker(
        engine,
        config,
        clock=clock_ms,
        learn_pairs=lambda engine, cache, progress, conclude: update_with_verdicts(
            engine, cache, meanwhile, conclude, config=config
        ),
    )
    assert (worker.enqueue_due(), worker.run_one()) == (1, True)
    (job,) = jobs_of(engine)
    assert (job.state, active(engine).encoder_id) == (jobs.FAILED, first[0])
    assert "got another active encoder" in job.error
    with reading(engine) as connection:
        assert len(read_encoders(connection, read_cache(connection, "faq").id)) == 2
    assert worker.enqueue_due() == 0, "the first has read them"


def test_a_cache_that_is_deleted_meanwhile_ends_the_job(engine: Engine, config: Config) -> None:
    def meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "activate":
            with writing(engine) as connection:
                registry.delete_cache(connection, "faq", etag="")

    worker = Worker(
        engine,
        config,
        clock=clock_ms,
        learn_pairs=lambda engine, cache, progress, conclude: update_with_verdicts(
            engine, cache, meanwhile, conclude, config=config
        ),
    )
    assert (worker.enqueue_due(), worker.run_one(), worker.run_one()) == (1, True, False)
    assert watermarks(engine) == {}


def test_pairs_and_verdicts_exclude_each_other(engine: Engine, command: Command) -> None:
    with pytest.raises(SystemExit):
        command("update", "--cache", "faq", "--pairs", "x.npz", "--verdicts")
