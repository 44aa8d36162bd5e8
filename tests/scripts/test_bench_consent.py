"""The benchmark of consent, on a few made-up questions."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_consent_is_measured_beside_lookups_without_it(nearhit: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 700
    rows = rng.standard_normal((count, 16))
    noise = rng.uniform(0.1, 1.1, count)
    partners = rows + noise[:, None] * rng.standard_normal(rows.shape)
    numbers = np.arange(count)
    pairs = np.column_stack([numbers, numbers + count, rng.random(count) > noise]).astype(np.int32)
    embeddings = np.concatenate([rows, partners]).astype(np.float16)
    np.savez(tmp_path / "question_pairs.npz", embeddings=embeddings, pairs=pairs)
    texts = [f"question {number % count}, form {number // count}" for number in range(2 * count)]
    (tmp_path / "question_pairs.txt").write_text("\n".join(texts) + "\n")
    done = nearhit("bench", "consent", "--data", str(tmp_path), "--quick", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    figures = {(line["method"], line["metric"], line["batch"]): line["value"] for line in lines}
    assert set(figures) == {
        (method, metric, batch)
        for method in ("no_consent", "consent")
        for metric in ("lookup_p50_ms", "hit_rate")
        for batch in (1, 32)
    }
    assert {line["bench"] for line in lines} == {"consent"}
    for batch in (1, 32):
        assert figures["no_consent", "hit_rate", batch] == 1.0
        assert 0 < figures["consent", "hit_rate", batch] < 1.0
    rated = [line for line in lines if line["rival"]]
    assert all(line["ratio"] == line["rival_value"] / line["value"] for line in rated) and len(rated) == 2
