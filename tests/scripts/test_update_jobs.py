"""Updates that are queued and followed, and the list of jobs, as an operator sees them."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from hashing.config import EncoderConfig
from scripts.__main__ import main
from scripts.server_process import write_config
from service import jobs
from service.application import clock_ms
from service.config import Config, load_config
from service.database import open_engine, reading, writing
from service.learning import train_from_store
from service.records import JobRecord
from service.registry import activate_encoder
from service.rows import read_cache, read_jobs
from service.worker import Worker

Command = Callable[..., Any]


@pytest.fixture
def command(config_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `nearhit` in this process, for the JSON that it prints."""

    def run(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--config", str(config_path)]) == status
        printed = capsys.readouterr()
        return json.loads(printed.out) if "--json" in arguments and printed.out else printed

    return run


@pytest.fixture
def config(config_path: Path) -> Config:
    """The configuration that the commands read."""
    return load_config(config_path, environment={})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose cache "faq" has an encoder, and labelled rows that it has not learned."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    embeddings = np.repeat(rng.standard_normal((3, 8)), 20, axis=0) + 0.1 * rng.standard_normal((60, 8))
    ids = np.arange(60).astype(str)
    labels = np.repeat(["a", "b", "c"], 20)
    config = str(write_config(folder))
    for name, rows in (("first", slice(40)), ("more", slice(40, None))):
        file = folder / f"{name}.npz"
        np.savez(file, embeddings=embeddings[rows], labels=labels[rows], id=ids[rows])
        build = ["build", "--cache", "faq", "--code-bits", "64", "--json", "--config", config]
        assert main([*build, "--input", str(file)]) == 0
        if name == "first":
            _train(load_config(Path(config), environment={}))
    return folder


def _train(config: Config) -> None:
    """Few random features: an update of them is quick."""
    engine = open_engine(config.store)
    small = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=64)
    trained = train_from_store(engine, "faq", config=small, modality="text", progress=None, now_ms=1)
    with writing(engine) as connection:
        cache_id = read_cache(connection, "faq").id
        activate_encoder(connection, cache_id, trained.encoder_id, max_live_encoders=4)
    engine.dispose()


@pytest.fixture
def engine(config: Config, made: Path, tmp_path: Path) -> Iterator[Engine]:
    """A copy of that store."""
    for file in made.glob("nearhit.db*"):
        shutil.copy(file, tmp_path)
    engine = open_engine(config.store)
    yield engine
    engine.dispose()


def jobs_of(engine: Engine) -> list[JobRecord]:
    """Newest first."""
    with reading(engine) as connection:
        return read_jobs(connection, read_cache(connection, "faq").id)


def test_update_with_progress_learns_in_its_own_process(engine: Engine, command: Command) -> None:
    outcome = command("update", "--cache", "faq", "--json")
    assert (outcome["accepted"], outcome["new_labels"]) == (True, ["c"])
    assert jobs_of(engine) == []
    assert command("update", "--cache", "faq", "--json", status=3)["encoder_id"] is None


def test_queued_update_waits_for_a_worker_and_is_queued_once(engine: Engine, command: Command) -> None:
    first, second = (command("update", "--cache", "faq", "--queue", "--json") for _ in range(2))
    assert (first["state"], first["stage"], second["job"]) == ("queued", None, first["job"])


def test_followed_update_ends_as_one_that_is_not_queued(
    engine: Engine, config: Config, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.follow_job._POLL_SECONDS", 0.01)
    for status in (0, 3):
        with worker_of(engine, config):
            outcome = command("update", "--cache", "faq", "--queue", "--follow", "--json", status=status)
        assert outcome["accepted"] is (status == 0)
    assert [job.state for job in jobs_of(engine)] == [jobs.SUCCEEDED] * 2


@contextmanager
def worker_of(engine: Engine, config: Config) -> Iterator[None]:
    """A worker in a thread, which takes what is queued."""
    update = replace(config.update, poll_seconds=0.02, min_labelled_rows=1000)
    worker = Worker(engine, replace(config, update=update), clock=clock_ms)
    stopped = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stopped,))
    thread.start()
    yield
    stopped.set()
    thread.join()


def test_update_that_is_cancelled_while_it_is_followed_says_so(
    engine: Engine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(_seconds: float) -> None:
        with writing(engine) as connection:
            cache = read_cache(connection, "faq")
            jobs.cancel(connection, cache, jobs_of(engine)[0].name, now_ms=1)

    monkeypatch.setattr("time.sleep", cancel)
    printed = command("update", "--cache", "faq", "--queue", "--follow", status=1)
    assert f"job {jobs_of(engine)[0].name} cancelled" in printed.err


def test_followed_job_that_no_worker_takes_names_the_worker(
    engine: Engine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.follow_job._HINT_SECONDS", 0.0)
    monkeypatch.setattr("time.sleep", lambda _seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    printed = command("update", "--cache", "faq", "--queue", "--follow", status=130)
    assert "does a `nearhit worker` run?" in printed.err
    assert jobs_of(engine)[0].state == jobs.QUEUED, "an interrupt ends the showing alone"


def test_follow_alone_is_refused(engine: Engine, command: Command) -> None:
    assert "--follow goes with --queue" in command("update", "--cache", "faq", "--follow", status=1).err


def test_jobs_are_listed_and_cancelled(engine: Engine, command: Command) -> None:
    assert command("jobs", "--cache", "faq", "--json") == {"cache": "faq", "jobs": []}
    queued = command("update", "--cache", "faq", "--queue", "--json")
    (listed,) = command("jobs", "--cache", "faq", "--json")["jobs"]
    assert listed == queued
    cancelled = command("jobs", "--cache", "faq", "--cancel", queued["job"], "--json")
    assert (cancelled["state"], cancelled["ended"] is None) == ("cancelled", False)
    line = command("jobs", "--cache", "faq").out.split()
    assert line[:3] == [queued["job"], "update", "cancelled"]
    again = command("jobs", "--cache", "faq", "--cancel", queued["job"], status=1)
    assert "has cancelled already" in again.err


@pytest.mark.parametrize("arguments", [("--cache", "none"), ("--cache", "faq", "--cancel", "none")])
def test_unknown_cache_or_job_is_named(engine: Engine, command: Command, arguments: tuple[str, ...]) -> None:
    assert "none does not exist" in command("jobs", *arguments, status=1).err


def test_worker_once_loads_the_inbox_and_learns_what_it_brings(
    engine: Engine, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEARHIT_UPDATE_INBOX", str(tmp_path / "inbox"))
    monkeypatch.setenv("NEARHIT_UPDATE_MIN_LABELLED_ROWS", "22")
    monkeypatch.setenv("NEARHIT_UPDATE_POLL_SECONDS", "0.01")
    monkeypatch.setattr("os.nice", lambda _niceness: 0)
    monkeypatch.setattr("signal.signal", lambda _number, _act: None)
    folder = tmp_path / "inbox" / "faq" / "default"
    folder.mkdir(parents=True)
    np.savez(folder / "rows.npz", embeddings=np.eye(8)[:2], labels=["d", "d"])
    command("worker", "--once")
    update, load = jobs_of(engine)
    assert (load.kind, load.state, update.kind) == (jobs.LOAD, jobs.SUCCEEDED, jobs.UPDATE)
    assert json.loads(update.report)["new_labels"] == ["c", "d"]
    assert (folder / "loaded" / "rows.npz").exists()
