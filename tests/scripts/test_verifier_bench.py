"""The verifier's benchmarks on a tiny folder of the form of the real one."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from hashing.deep.verifier import VerifierConfig, train_verifier
from hashing.verifier import dump_verifier
from scripts.bench import verifier_latency, verifier_pairs

DIM = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((240, DIM)).astype(np.float16)
    pairs = np.column_stack([np.arange(0, 240, 2), np.arange(1, 240, 2), np.arange(120) % 2])
    np.savez(tmp_path / "question_pairs.npz", embeddings=rows, pairs=pairs.astype(np.int32))
    texts = [f"what is number {row}?" for row in range(240)]
    (tmp_path / "question_pairs.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return tmp_path


def test_latency_is_printed_of_each_case(folder: Path, tmp_path: Path, capsys) -> None:
    with np.load(folder / "question_pairs.npz") as archive:
        embeddings, pairs = archive["embeddings"], archive["pairs"]
    texts = (folder / "question_pairs.txt").read_text(encoding="utf-8").split("\n")[:240]
    verifier = train_verifier(embeddings, pairs, texts=texts, config=VerifierConfig(folds=2, epochs=1))
    (tmp_path / "verifier").write_bytes(dump_verifier(verifier))
    verifier_latency.main([str(tmp_path / "verifier"), "--data", str(folder)])
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {figure["case"] for figure in figures} == {"warm", "new query", "cold", "embeddings"}
    assert all(figure["value"] > 0 and figure["unit"] == "ms" for figure in figures)


def test_pairs_are_judged_for_each_seed(folder: Path, capsys) -> None:
    verifier_pairs.main(["--data", str(folder), "--seeds", "1", "--tuning"])
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    judged = {(figure["metric"], figure["method"]) for figure in figures if figure["case"] == "seed 0"}
    assert {("auc", "cosine"), ("auc", "verifier"), ("hit_rate_at_1_error", "embedding part")} <= judged
