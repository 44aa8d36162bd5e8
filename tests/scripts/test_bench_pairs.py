"""The verifier's benchmarks on a tiny folder of the form of the real one."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from hashing.deep.verifier import VerifierConfig, train_verifier
from hashing.verifier import dump_verifier
from scripts.__main__ import main
from scripts.bench import verifier_latency

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


def test_pairs_are_judged_by_every_method(folder: Path, capsys) -> None:
    assert main(["bench", "pairs", "--data", str(folder), "--seeds", "2", "--json"]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    judged = {(figure["metric"], figure["method"], figure["bits"]) for figure in figures}
    for metric in ("auc", "wrong_hits_at_20", "hit_rate_at_1_error", "auc_spread"):
        coded = {(metric, f"{own}{kind}", 256) for own in ("itq", "learned") for kind in ("", "_asymmetric")}
        assert coded | {(metric, "cosine", None), (metric, "verifier", None)} <= judged
    learned = next(own for own in figures if own["method"] == "learned" and own["metric"] == "auc")
    assert (learned["rival"], learned["seeds"]) == ("cosine", 2)
    assert learned["ratio"] == pytest.approx(learned["value"] / learned["rival_value"])
