"""What the benchmarks of codes and of attacks compute, and that they run on any folder of the form."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.arguments import CommandError
from scripts.bench.coders import load_pairs
from scripts.bench.codes import Neighbours, recalls
from scripts.bench.data import load_real, unit_rows
from scripts.bench.intents import load_intents
from scripts.bench.lines import Figure
from scripts.bench.pairs import load_fold
from scripts.bench.plot import write_curves
from scripts.bench.seeds import SeededFigures, print_means

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _figure(method: str, value: float, *, metric: str = "recall") -> Figure:
    return Figure(bench="codes", case="a", metric=metric, method=method, value=value, unit="share", bits=64)


def test_figures_of_several_seeds_give_mean_and_spread() -> None:
    figures = SeededFigures()
    for value in (0.1, 0.2, 0.6):
        figures.add(_figure("itq", value))
    figures.add(_figure("lsh", 0.5))
    mean, single = figures.means()
    (spread,) = figures.spreads()
    assert (mean.value, mean.seeds) == (pytest.approx(0.3), 3)
    assert (single.value, single.seeds) == (0.5, 1)
    assert (spread.metric, spread.method) == ("recall_spread", "itq")
    assert spread.value == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_means_stand_beside_the_rival_of_the_same_kind_of_query(capsys) -> None:
    figures = SeededFigures()
    for method, value in (("itq", 0.2), ("itq_asymmetric", 0.4), ("lsh", 0.1), ("lsh_asymmetric", 0.1)):
        figures.add(_figure(method, value))
        figures.add(_figure(method, value, metric="attacked_share"))
    print_means(figures, rival="itq", lower_is_better={"attacked_share"}, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    beside = {(line["method"], line["metric"]): (line["rival"], line["ratio"]) for line in lines}
    assert beside[("itq", "recall")] == beside[("itq_asymmetric", "recall")] == (None, None)
    assert beside[("lsh", "recall")] == ("itq", pytest.approx(0.5))
    assert beside[("lsh_asymmetric", "recall")] == ("itq_asymmetric", pytest.approx(0.25))
    assert beside[("lsh", "attacked_share")] == ("itq", pytest.approx(2))


def test_recalls_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows, queries = (unit_rows(rng.standard_normal((count, 16))) for count in (300, 300))
    stored, asked = (np.where(part @ rng.standard_normal((16, 8)) > 0, 1, -1) for part in (rows, queries))
    stored, asked = (
        (part + 0.01 * rng.standard_normal(part.shape)).astype(np.float32) for part in (stored, asked)
    )
    truth, found = (np.argsort(-scores, axis=1) for scores in (queries @ rows.T, asked @ stored.T))
    measured = recalls(asked, stored, truth=Neighbours.of(queries, rows))
    for count in (10, 100):
        shares = [len(set(a[:10]) & set(b[:count])) / 10 for a, b in zip(truth, found, strict=True)]
        assert measured[count] == pytest.approx(np.mean(shares))
    assert recalls(queries, rows, truth=Neighbours.of(queries, rows)) == {10: 1.0, 100: 1.0}


def test_a_row_as_near_as_the_tenth_counts() -> None:
    rng = np.random.default_rng(0)
    rows, queries = unit_rows(rng.standard_normal((120, 16))), unit_rows(rng.standard_normal((1, 16)))
    rows[:20] = queries
    ten_hidden = rows.copy()
    ten_hidden[5:15] = -rows[5:15]
    assert recalls(queries, ten_hidden, truth=Neighbours.of(queries, rows)) == {10: 1.0, 100: 1.0}


def test_one_file_of_the_two_is_enough(tmp_path: Path) -> None:
    _write_intents(tmp_path)
    dataset = load_real(tmp_path, quick=False, tuning=False)
    assert dataset.name == "intents"
    assert len(dataset.rows) + 2 * len(dataset.queries) == 480
    with pytest.raises(CommandError, match="no such file"):
        load_real(tmp_path / "none", quick=False, tuning=False)
    np.savez(tmp_path / "question_pairs.npz", embeddings=np.ones((10, 7), dtype=np.float16))
    with pytest.raises(CommandError, match="7 and 32 columns"):
        load_real(tmp_path, quick=False, tuning=False)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"embeddings": np.ones((4, 2), np.float32), "intent": ["a"] * 4, "split": ["train"] * 3 + ["test"]},
        {"embeddings": np.ones((2, 2), np.float32), "intent": ["a", "b"], "split": ["train", "train"]},
        {"embeddings": np.ones((3, 2), np.float32), "intent": ["a", "b"], "split": ["train", "test"]},
    ],
    ids=["no arrays", "one class", "no test split", "lengths"],
)
def test_labelled_queries_that_cannot_be_measured_are_refused(tmp_path: Path, content: dict) -> None:
    np.savez(tmp_path / "intents.npz", **content)
    with pytest.raises(CommandError, match=r"intents\.npz"):
        load_intents(tmp_path, tuning=False, query_limit=10, seed=0)


def test_labelled_queries_are_of_the_split_that_was_asked_for(tmp_path: Path) -> None:
    _write_intents(tmp_path)
    reported, tuned = (
        load_intents(tmp_path, tuning=tuning, query_limit=50, seed=1) for tuning in (False, True)
    )
    assert (len(reported.rows), len(reported.queries), len(tuned.queries)) == (320, 50, 50)
    rows = {row.tobytes() for part in (reported.rows, tuned.queries) for row in part}
    assert not rows & {row.tobytes() for row in reported.queries}
    assert {label for (label,) in reported.query_labels} <= {"i0", "i1", "i2", "i3"}


def test_pairs_that_touch_a_query_are_left_out(tmp_path: Path) -> None:
    assert load_pairs(tmp_path) is None
    rng = np.random.default_rng(0)
    pairs = np.column_stack([rng.integers(0, 4000, (3000, 2)), rng.integers(0, 2, 3000)])
    rows = rng.standard_normal((4000, 4)).astype(np.float16)
    np.savez(tmp_path / "question_pairs.npz", embeddings=rows, pairs=pairs)
    loaded = load_pairs(tmp_path)
    assert loaded is not None
    kept = pairs[~np.isin(pairs[:, :2] % 80, (0, 40)).any(axis=1)]
    embeddings, own = loaded
    assert np.array_equal(own[:, 2], kept[:, 2])
    assert np.array_equal(embeddings[own[:, :2]], rows[kept[:, :2]])
    assert len(embeddings) == np.unique(kept[:, :2]).size
    np.savez(tmp_path / "question_pairs.npz", embeddings=np.ones((4000, 4), np.float16), pairs=pairs[:100])
    assert load_pairs(tmp_path) is None


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_questions_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "question_pairs.npz").write_bytes(content)
    with pytest.raises(CommandError, match=r"question_pairs\.npz: no \.npz of embeddings and pairs"):
        load_fold(tmp_path, seed=0, quick=True)


def test_curves_are_written_as_png_and_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = {"itq": [(128, 0.9), (64, 0.7)], "itq_asymmetric": [(64, 0.8), (128, 0.95)]}
    written = write_curves(curves, tmp_path / "curve", title="rows", x_name="bits", y_name="recall")
    assert [path.read_bytes()[:4] for path in written] == [b"\x89PNG", b"<?xm"]


def test_a_quick_benchmark_of_codes_prints_json_lines(nearhit: Run, tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("torch")
    _write_intents(tmp_path)
    done = nearhit("bench", "codes", "--data", str(tmp_path), "--quick", "--json", "--bits", "64")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by = {(line["method"], line["metric"], line["bits"]): line["value"] for line in lines}
    for method in ("lsh", "itq", "pq", "learned", "learned_asymmetric"):
        assert 0 < by[(method, "recall_at_10_in_10", 64)] <= by[(method, "recall_at_10_in_100", 64)] <= 1
    assert by[("sign", "recall_at_10_in_100", 32)] <= by[("cosine", "recall_at_10_in_100", None)] == 1
    assert by[("label_codes_asymmetric", "class_map", 64)] > 0.9
    assert {line["bench"] for line in lines} == {"codes"}


def test_a_quick_benchmark_of_attacks_prints_json_lines(nearhit: Run, tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("torch")
    _write_intents(tmp_path)
    done = nearhit("bench", "attack", "--data", str(tmp_path), "--quick", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by = {(line["method"], line["metric"], line["case"]): line["value"] for line in lines}
    for method in ("label_codes", "tower", "tower_adversarial"):
        assert by[(method, "clean_map", "clean")] > 0.9
        shares = [by[(method, "attacked_share", f"eps {eps}")] for eps in ("0.1", "0.2", "0.3")]
        assert shares == sorted(shares)


def _write_intents(folder: Path) -> None:
    """Four classes of 120 rows of 32 dimensions: 80 train, 20 val, 20 test each."""
    rng = np.random.default_rng(0)
    number = np.arange(480)
    rows = unit_rows(rng.standard_normal((4, 32))[number % 4] + 0.7 * rng.standard_normal((480, 32)))
    split = np.array(["train"] * 320 + ["val"] * 80 + ["test"] * 80)
    intent = np.array([f"i{n % 4}" for n in number])
    np.savez(folder / "intents.npz", embeddings=rows.astype(np.float16), intent=intent, split=split)
