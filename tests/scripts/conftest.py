"""Commands as a person runs them, each in a folder of its own."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_process import run_command
from numpy.typing import NDArray

from scripts.server_process import ServerProcess, write_config
from service.config import load_config

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def answer() -> Callable[["subprocess.CompletedProcess[str]"], dict[str, Any]]:
    """Reads the JSON object that a command printed."""

    def read(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed

    return read


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A configuration whose database, index and server are of this test alone."""
    return write_config(tmp_path)


@pytest.fixture
def nearhit(config_path: Path, tmp_path: Path) -> Run:
    """Runs `nearhit` as a process, see `run_command`. `--config` is given to the commands that take it."""

    def run(*arguments: str, status: int = 0, fresh: bool = False) -> "subprocess.CompletedProcess[str]":
        operating = {
            "train",
            "train-verifier",
            "build",
            "update",
            "migrate-embedder",
            "worker",
            "jobs",
            "encoders",
            "categories",
            "forget",
            "check",
        }
        takes_config = arguments[0] in {"migrate", "serve", *operating}
        config = ["--config", str(config_path)] if takes_config and "--config" not in arguments else []
        done = run_command((*arguments, *config), folder=tmp_path, timeout_seconds=100, fresh=fresh)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture
def served(config_path: Path, nearhit: Run) -> Iterator[tuple[ServerProcess, str]]:
    """A running `nearhit serve` and its address."""
    nearhit("migrate")
    address = load_config(config_path).server.address
    with ServerProcess(config_path, address=address) as server:
        yield server, address


@pytest.fixture
def embeddings() -> NDArray[np.float32]:
    """120 unit vectors of 32 dimensions in four clusters, 30 each in turn."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((4, 32))
    points = np.tile(centres, (30, 1)) + 0.25 * draw.standard_normal((120, 32))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
