"""Builds from large files: what is loaded first, and what an interrupted build leaves to be done."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select

from scripts import build_index
from service.config import load_config
from service.database import open_engine, reading
from service.rows import read_cache
from service.tables import entries

Build = Callable[..., None]


class Interrupted(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def engine(config_path: Path) -> Engine:
    """The database that the builds fill."""
    return open_engine(load_config(config_path, environment={}).store)


@pytest.fixture
def build(config_path: Path, tmp_path: Path, embeddings: NDArray[np.float32]) -> Build:
    """Builds a cache from 120 rows of a file, in batches of 10."""
    np.save(tmp_path / "rows.npy", embeddings)
    parser = argparse.ArgumentParser()
    build_index.add_arguments(parser)

    def run(*extra: str) -> None:
        given = ["--cache", "faq", "--input", str(tmp_path / "rows.npy"), "--code-bits", "64", "--json"]
        build_index.run(parser.parse_args([*given, "--config", str(config_path), *extra]))

    return run


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 10 rows; files of 60 rows or more are trained on 30 of them."""
    monkeypatch.setattr("scripts.row_files.BATCH_ROWS", 10)
    monkeypatch.setattr("scripts.build_index.MAX_TRAINING_ROWS", 30)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(stage, steps done) as builds show them."""
    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(
        build_index.ProgressBars,
        "__call__",
        lambda _self, stage, done, _total: shown.append((stage, done)),
    )
    return shown


def names(engine: Engine) -> list[str]:
    """Ids in the order of their storing."""
    with reading(engine) as connection:
        return list(connection.execute(select(entries.c.name).order_by(entries.c.id)).scalars())


def coded_count(engine: Engine) -> int:
    with reading(engine) as connection:
        query = select(func.count()).select_from(entries).where(entries.c.code.is_not(None))
        return int(connection.execute(query).scalar_one())


@pytest.mark.usefixtures("small_steps")
def test_training_rows_are_loaded_first_and_the_rest_with_codes(
    build: Build, engine: Engine, stages: list[tuple[str, int]]
) -> None:
    build("--train")
    order = [f"row-{number}" for number in range(0, 120, 4)]
    assert names(engine) == order + [f"row-{number}" for number in range(120) if number % 4]
    assert coded_count(engine) == 120
    assert [done for stage, done in stages if stage == "codes"] == [30]


@pytest.mark.usefixtures("small_steps")
def test_training_rows_of_a_file_that_does_not_tell_its_length_are_loaded_first_too(
    build: Build, engine: Engine, tmp_path: Path, embeddings: NDArray[np.float32]
) -> None:
    lines = [json.dumps({"embedding": row.tolist()}) for row in embeddings]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    build("--train", "--input", str(tmp_path / "rows.jsonl"))
    assert names(engine)[:30] == [f"row-{number}" for number in range(0, 120, 4)]


@pytest.mark.usefixtures("small_steps")
def test_an_encoder_without_radii_is_warned_of(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build("--train")
    assert "on 30 rows no Hamming radii can be measured" in capsys.readouterr().err


def test_an_encoder_with_radii_is_not_warned_of(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build("--train")
    assert "radii" not in capsys.readouterr().err


@pytest.mark.usefixtures("small_steps")
def test_rows_of_a_trained_cache_are_loaded_in_one_go(build: Build, engine: Engine) -> None:
    build("--train")
    with reading(engine) as connection:
        encoder_id = read_cache(connection, "faq").active_encoder_id
    build("--train")
    with reading(engine) as connection:
        assert read_cache(connection, "faq").active_encoder_id == encoder_id
    assert len(names(engine)) == 120


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("stage", "step"), [("load sample", 3), ("load", 2), ("load", 7), ("codes", 1), ("segments", 1)]
)
def test_interrupted_build_goes_on_where_it_was(
    build: Build,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    step: int,
) -> None:
    seen: list[str] = []

    def interrupt(_self: Any, shown: str, _done: int, _total: int) -> None:
        seen.append(shown)
        if seen.count(stage) == step:
            raise Interrupted

    monkeypatch.setattr(build_index.ProgressBars, "__call__", interrupt)
    with pytest.raises(Interrupted):
        build("--train")
    stored = names(engine)
    assert stored
    monkeypatch.setattr(build_index.ProgressBars, "__call__", lambda *_: None)
    capsys.readouterr()
    build("--train")
    assert names(engine)[: len(stored)] == stored
    assert sorted(names(engine)) == sorted(f"row-{number}" for number in range(120))
    assert coded_count(engine) == 120
    assert f'"rows_loaded": {120 - len(stored)}' in capsys.readouterr().out
