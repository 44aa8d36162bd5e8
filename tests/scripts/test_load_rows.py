"""Files of rows: what is refused, with its place, and what a second load leaves alone."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, func, select

from scripts.arguments import CommandError, ProgressBars
from scripts.load_rows import LoadReport, check_file, load_file
from scripts.row_files import open_rows
from service.config import load_config
from service.database import migrate, open_engine, reading
from service.tables import caches, entries

Load = Callable[..., LoadReport]


@pytest.fixture
def engine(config_path: Path) -> Engine:
    """An empty store."""
    engine = open_engine(load_config(config_path, environment={}).store)
    migrate(engine)
    return engine


@pytest.fixture
def load(engine: Engine, config_path: Path, tmp_path: Path) -> Load:
    """Loads rows, or lines that are none, from a .jsonl file."""

    def run(*rows: dict[str, Any] | str, **changed: str) -> LoadReport:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        arguments = argparse.Namespace(
            **{
                "input": path,
                "cache": "faq",
                "category": "default",
                "rename": [],
                "texts": None,
                "embedder_id": "",
                "code_bits": 64,
                "label_bits": 64,
            }
            | changed
        )
        config = load_config(config_path, environment={"NEARHIT_SERVER_MAX_RESPONSE_BYTES": "100"})
        progress = ProgressBars(silent=True)
        file, _ = check_file(arguments, config=config, progress=progress)
        return load_file(engine, file, arguments, config=config, progress=progress)

    return run


def _count(engine: Engine, table: Any) -> int:
    with reading(engine) as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x" * 101}, "the response has 101 bytes, at most 100"),
        ({"labels": ["a", None]}, "labels: a value is null"),
        ({"tags": [None]}, "tags: a value is null"),
        ({"labels": ["x" * 129]}, "labels: a value has 1 to 128 characters, not 129"),
        ({"tags": [""]}, "tags: a value has 1 to 128 characters, not 0"),
        ({"tags": [str(number) for number in range(33)]}, "tags is over 32 values"),
        ({"text": "a\0b"}, "text holds a NUL"),
        ({"text": "x" * 65537}, "text is over 65536 bytes"),
        ({"text": "\ud800"}, "no valid Unicode"),
        ({"scope": "x" * 1025}, "scope is over 1024 bytes"),
        ({"source": "x" * 1025}, "source is over 1024 bytes"),
        ({"cost": -1}, "cost must be 0 or in"),
        ({"cost": "much"}, "cost: 'much' is no number"),
        ({"cost": [1]}, "cost: [1] is no number"),
        ({"model": "x" * 257}, "model is over 256 bytes"),
        ({"id": "a/b"}, "id: 'a/b' is not an id"),
        ({"category": "A"}, "category: 'A' is not an id"),
        ({"embedding": [0.0, 0.0]}, "the embedding is a zero vector"),
    ],
)
def test_invalid_row_is_refused_with_file_and_number_and_nothing_is_stored(
    engine: Engine, load: Load, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(CommandError) as raised:
        load({"embedding": [1.0, 0.0]}, {"embedding": [0.0, 1.0], **row})
    assert "rows.jsonl: row 1: " in str(raised.value)
    assert message in str(raised.value)
    assert _count(engine, caches) == 0


def test_row_keeps_its_cost_and_model(engine: Engine, load: Load) -> None:
    load({"embedding": [1.0, 0.0], "cost": 2.5, "model": "m"}, {"embedding": [0.0, 1.0]})
    with reading(engine) as connection:
        found = select(entries.c.cost, entries.c.model, entries.c.worth > 0).order_by(entries.c.id)
        assert connection.execute(found).all() == [(2.5, "m", True), (0.0, "", False)]


def test_row_takes_the_fingerprint_that_a_caller_of_the_service_gets(engine: Engine, load: Load) -> None:
    load({"embedding": [1.0, 0.0], "text": " how\n are  you "}, {"embedding": [1.0, 0.0], "text": "x" * 2000})
    with reading(engine) as connection:
        found = list(connection.execute(select(entries.c.fingerprint).order_by(entries.c.id)).scalars())
    assert found[0] == "how are you"
    assert found[1].startswith("blake2b:")


def test_second_load_skips_ids_and_texts_that_are_stored(engine: Engine, load: Load) -> None:
    first = {"id": "a", "embedding": [1.0, 0.0], "text": "one"}
    assert load(first) == LoadReport(stored_count=1, skipped_count=0, ignored=())
    same_text = {"id": "b", "embedding": [0.0, 1.0], "text": "one"}
    other_scope = {**same_text, "id": "c", "scope": "de"}
    assert load(first, same_text, other_scope) == LoadReport(stored_count=1, skipped_count=2, ignored=())
    with reading(engine) as connection:
        assert sorted(connection.execute(select(entries.c.name)).scalars()) == ["a", "c"]


@pytest.mark.parametrize("embedding", [3, None, "abc", [], {}])
def test_embedding_that_is_no_list_is_refused(load: Load, embedding: object) -> None:
    with pytest.raises(CommandError, match=r"rows\.jsonl: `embedding` of the first row is not a list"):
        load({"embedding": embedding})


def test_later_batch_of_other_dimensions_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.row_files.BATCH_ROWS", 1)
    with pytest.raises(CommandError, match="the first row has 2 dimensions"):
        load({"embedding": [1.0, 0.0]}, {"embedding": [1.0, 0.0, 0.0]})


def test_line_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"embedding": [1, 0]}\n' + b'{"embedding": [1, 0], "text": "\xff"}\n')
    with pytest.raises(CommandError, match=r"rows\.jsonl: "):
        list(open_rows(path).batches())


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"embedding": [1, 0]}\n{"embedding": [0, 1]}\n')
    (tmp_path / "texts.txt").write_text("one\n")
    with pytest.raises(CommandError, match="1 values of text for"):
        list(open_rows(tmp_path / "rows.jsonl", texts=tmp_path / "texts.txt").batches())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_archive_is_refused(tmp_path: Path, damage: str, *, compressed: bool) -> None:
    path = tmp_path / "rows.npz"
    embeddings = np.random.default_rng(0).standard_normal((50, 8))
    (np.savez_compressed if compressed else np.savez)(path, embeddings=embeddings)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CommandError, match=r"rows\.npz: "):
        open_rows(path)


def test_rows_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"embedding": [1, 0]}\n{"embedding": [0, 1]}\n')
    file = open_rows(path)
    assert [len(batch) for batch in file.batches()] == [len(batch) for batch in file.batches()] == [2]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 12])
def test_every_nth_row_is_read_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr("scripts.row_files.BATCH_ROWS", 4)
    np.savez(tmp_path / "rows.npz", embeddings=np.eye(11), text=[f"t{number}" for number in range(11)])
    batches = list(open_rows(tmp_path / "rows.npz").batches(step=step))
    assert [number for batch in batches for number in batch.numbers] == list(range(0, 11, step))
    for batch in batches:
        assert np.argmax(batch.embeddings, axis=1).tolist() == list(batch.numbers)
        assert batch.columns["text"] == [f"t{number}" for number in batch.numbers]
