"""Instance codes that go on learning from pairs, by command."""

import json
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.__main__ import main
from scripts.pair_learning import _share_out
from service.config import load_config
from service.database import open_engine
from service.forgetting import ForgetSelection, forget_rows

pytest.importorskip("torch", reason="needs the extra train")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Answer = Callable[["subprocess.CompletedProcess[str]"], dict[str, Any]]

DIM = 32
SHARED = 16
"""Leading dimensions that say which two rows mean the same; the others are noise."""


def draw(count: int, *, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_pairs(path: Path, *, count: int, seed: int) -> Path:
    """Pairs of rows that share their leading dimensions (1), and of rows that share all others (0)."""
    rng = np.random.default_rng(seed)
    first, second = draw(count, seed=seed), draw(count, seed=seed + 1)
    label = np.arange(count) % 2
    same = rng.standard_normal((count, DIM)) * 0.02
    second = (
        np.where((np.arange(DIM) < SHARED) == (label[:, None] == 1), first, second) + same
    )  # [count, DIM]
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    pairs = np.column_stack([np.arange(count), np.arange(count) + count, label])
    np.savez(path, embeddings=np.concatenate([first, second]).astype(np.float32), pairs=pairs)
    return path


def stored_codes(folder: Path) -> dict[str, tuple[bytes, str]]:
    (database,) = folder.glob("*.db")
    with sqlite3.connect(database) as connection:
        found = connection.execute("SELECT name, code, encoder_id FROM entries")
        return {name: (code, encoder) for name, code, encoder in found}


@pytest.fixture
def trained(nearhit: Run, tmp_path: Path) -> None:
    """A cache of 300 coded rows."""
    np.save(tmp_path / "rows.npy", draw(300, seed=9))
    nearhit("build", "--cache", "faq", "--input", str(tmp_path / "rows.npy"), "--train")


def test_pairs_are_learned_while_stored_codes_stay(
    trained: None, nearhit: Run, answer: Answer, tmp_path: Path
) -> None:
    before = stored_codes(tmp_path)
    pairs = write_pairs(tmp_path / "pairs.npz", count=1200, seed=1)
    learned = answer(nearhit("update", "--cache", "faq", "--pairs", str(pairs), "--json"))
    assert learned["child_auc_256"] > learned["parent_auc_256"] + 0.02
    assert learned["stored_auc_256"] > learned["parent_auc_256"]
    assert stored_codes(tmp_path) == before
    listed = [
        json.loads(line) for line in nearhit("encoders", "--cache", "faq", "--json").stdout.splitlines()
    ]
    (child,) = [found for found in listed if found["parent"] is not None]
    assert child["encoder"] == learned["encoder_id"]
    assert learned["accepted"] and child["state"] == "active"
    assert child["metrics"]["recall_after"] == pytest.approx(learned["recall_after"])
    nearhit("check")


def test_an_update_that_rehearsed_a_forgotten_row_is_not_kept(
    trained: None,
    config_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hashing.deep.lifelong import update_pairs

    engine = open_engine(load_config(config_path).store)
    (name, *_) = stored_codes(tmp_path)

    def update_meanwhile(*arguments: Any, **named: Any) -> Any:
        assert forget_rows(engine, "faq", ForgetSelection(names=(name,)), clock=lambda: 1).entry_count == 1
        return update_pairs(*arguments, **named)

    monkeypatch.setattr("hashing.deep.lifelong.update_pairs", update_meanwhile)
    pairs = write_pairs(tmp_path / "pairs.npz", count=1200, seed=1)
    given = ["update", "--config", str(config_path), "--cache", "faq", "--pairs", str(pairs)]
    assert main(given) == 1
    assert "1 rows were forgotten" in capsys.readouterr().err


@pytest.mark.parametrize("paired_count", [0, 30, 90])
def test_what_judges_is_neither_rehearsed_nor_held_out_nor_learned_while_there_are_others(
    paired_count: int,
) -> None:
    """Of 100 stored rows the first are of pairs, every third of those held out."""
    stored, asked = draw(100, seed=1), draw(paired_count + 3, seed=2)
    rows = np.concatenate([stored[:paired_count], asked])
    pairs = [(paired_count + i, i, 1) for i in range(0, paired_count, 3)]
    held_out = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    rehearsed, judged = _share_out(stored, rows, held_out, rng=np.random.default_rng(0))
    place = {row.tobytes(): i for i, row in enumerate(stored)}
    learns, judges = ([place[row.tobytes()] for row in part] for part in (rehearsed, judged))
    assert sorted(learns + judges) == [i for i in range(100) if i >= paired_count or i % 3]
    assert len(judges) == min(50, (100 - len(pairs)) // 2)
    assert sum(i < paired_count for i in judges) == max(0, len(judges) - (100 - paired_count))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": np.eye(40, 31) + 0.1, "pairs": [[0, 1, 1]] * 3}, "dimensions, the cache's have 32"),
        ({"embeddings": np.full((40, 32), np.nan), "pairs": [[0, 1, 1]]}, "holds NaN"),
    ],
)
def test_bad_pairs_are_refused_and_nothing_changes(
    trained: None, nearhit: Run, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "pairs.npz", **arrays)
    refused = nearhit("update", "--cache", "faq", "--pairs", str(tmp_path / "pairs.npz"), status=1)
    assert message in refused.stderr
    assert len(nearhit("encoders", "--cache", "faq", "--json").stdout.splitlines()) == 1


def test_a_worker_takes_no_pairs(trained: None, nearhit: Run) -> None:
    refused = nearhit("update", "--cache", "faq", "--pairs", "x.npz", "--queue", status=1)
    assert "--pairs does not go with --queue" in refused.stderr


@pytest.mark.parametrize(("stored", "judged"), [(40, 20), (100, 50), (120, 50), (1000, 200)])
def test_a_small_cache_has_enough_rows_to_judge_among(stored: int, judged: int) -> None:
    from scripts.pair_learning import _share_out

    rows = draw(stored, seed=3)
    nothing = np.empty((0, 3), dtype=np.int64)
    rehearsed, gate = _share_out(rows, draw(5, seed=4), nothing, rng=np.random.default_rng(0))
    assert (len(gate), len(rehearsed)) == (judged, stored - judged)
    assert {row.tobytes() for row in (*gate, *rehearsed)} == {row.tobytes() for row in rows}


def test_a_cache_too_small_to_judge_by_keeps_its_encoder(
    nearhit: Run, answer: Answer, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", draw(60, seed=9))
    nearhit("build", "--cache", "faq", "--input", str(tmp_path / "rows.npy"), "--train")
    pairs = write_pairs(tmp_path / "pairs.npz", count=200, seed=1)
    told = answer(nearhit("update", "--cache", "faq", "--pairs", str(pairs), "--json", status=3))
    assert told["encoder_id"] is None and "60 stored entries are too few to judge by" in told["reasons"][0]
    assert len(nearhit("encoders", "--cache", "faq", "--json").stdout.splitlines()) == 1
