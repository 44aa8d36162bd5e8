"""A server that does not start is told at once and leaves nothing behind."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import server_process
from scripts.arguments import CommandError
from scripts.server_process import ServerProcess
from service.config import load_config

Popen = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> "list[subprocess.Popen[bytes]]":
    """The processes that were started."""
    processes: list[subprocess.Popen[bytes]] = []
    popen: Popen = subprocess.Popen

    def record(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return processes


@pytest.fixture
def server(config_path: Path) -> ServerProcess:
    """A server whose database has no schema: it ends at once."""
    return ServerProcess(config_path, address=load_config(config_path, environment={}).server.address)


def test_server_that_ends_is_told_at_once(server: ServerProcess) -> None:
    before = time.monotonic()
    with pytest.raises(CommandError, match="ended at its start, status 1"):
        server.start()
    assert time.monotonic() - before < 60


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_start_kills_the_process(
    server: ServerProcess,
    started: "list[subprocess.Popen[bytes]]",
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def interrupt(*, timeout_seconds: float) -> None:
        raise error

    monkeypatch.setattr(server.client, "wait_until_ready", interrupt)
    with pytest.raises(error):
        server.start()
    assert [process.poll() for process in started] == [-9]


def test_server_that_never_answers_is_killed(
    server: ServerProcess, started: "list[subprocess.Popen[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_START_SECONDS", 0.0)
    monkeypatch.setattr(server_process, "_POLL_SECONDS", 0.01)
    with pytest.raises(CommandError, match="did not start"):
        server.start()
    assert [process.poll() for process in started] == [-9]
