"""A store and a generation to serve, made once, for the benchmarks of a server's life."""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from scripts.arguments import CommandError, ProgressBars, positive_integer
from scripts.bench.lines import add_bench_arguments
from scripts.server_process import write_config
from service.config import load_config
from service.database import open_engine, reading
from service.tables import entries

CACHE, CATEGORY = "bench", "default"
DIM = 384
CODE_BITS = 256
_ROWS = 1_000_000
_QUICK_ROWS = 20_000
_CHUNK_ROWS = 16_384
_QUERY_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A folder with a store and a generation, and what serves it. `row_count`: rows of known texts."""

    config_path: Path
    address: str
    row_count: int


def add_stored_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of benchmarks that serve such a store."""
    add_bench_arguments(parser)
    parser.add_argument("--rows", type=positive_integer, help=f"entries to serve (default {_ROWS:,})")
    parser.add_argument(
        "--folder", type=Path, help="where the store is made and stays, and is found the next time"
    )


@contextmanager
def stored_rows(arguments: argparse.Namespace) -> Iterator[Stored]:
    """A store of as many rows as were asked for, with a generation; the one in `--folder` if there is one.

    Vectors are random: what a start or a swap takes does not depend on them. Raises: CommandError, also where
    the folder holds another count of rows than was asked for.
    """
    row_count = arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearhit-bench-")))
        if not (folder / "nearhit.toml").exists():
            _make(folder, row_count=row_count, progress=ProgressBars(silent=arguments.json))
        config = load_config(folder / "nearhit.toml")
        engine = open_engine(config.store)
        with reading(engine) as connection:
            # Those that a swap stored have no text.
            texts = select(func.count()).select_from(entries).where(entries.c.text != "")
            row_count = int(connection.execute(texts).scalar_one())
        engine.dispose()
        if arguments.rows not in (None, row_count):
            raise CommandError(f"{folder} holds {row_count:,} rows, --rows asks for {arguments.rows:,}")
        yield Stored(config_path=folder / "nearhit.toml", address=config.server.address, row_count=row_count)


def unit_vectors(count: int, *, seed: int = _QUERY_SEED) -> NDArray[np.float16]:
    """Random unit vectors, float16 [count, DIM]."""
    draw = np.random.default_rng(seed)
    vectors = np.empty((count, DIM), dtype=np.float16)
    for start in range(0, count, _CHUNK_ROWS):
        part = draw.standard_normal((min(_CHUNK_ROWS, count - start), DIM), dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        vectors[start : start + len(part)] = part
    return vectors


def _make(folder: Path, *, row_count: int, progress: ProgressBars) -> None:
    """Store and build as an operator would: from a file, with an encoder trained on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.npz"
    numbers = range(row_count)
    np.savez(
        file,
        embeddings=unit_vectors(row_count, seed=0),
        text=np.array([f"question number {number}" for number in numbers]),
        response=np.array([f"answer {number}" for number in numbers]),
    )
    progress("build", 0, 1)
    config_path = write_config(folder)
    command = [
        *(sys.executable, "-m", "scripts", "build", "--config", str(config_path), "--cache", CACHE),
        *("--input", str(file), "--train", "--code-bits", str(CODE_BITS), "--json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    file.unlink()
    if done.returncode:
        config_path.unlink()  # so that the folder is not taken for a finished one
        raise CommandError(f"the build failed: {done.stderr}")
    progress("build", 1, 1)
    progress.close()
