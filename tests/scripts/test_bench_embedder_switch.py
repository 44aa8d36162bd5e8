"""The benchmark of a change of embedder, on a tiny folder of the form of the real one."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.pairs import connected_components
from scripts.arguments import CommandError
from scripts.bench import embedder_switch
from scripts.bench.embedder_switch import fold_figures, load_switch_fold, switch_figures

COUNT, DIM, NEW_DIM = 600, 8, 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((COUNT, DIM))
    rows[1::2] = rows[::2] + 0.3 * rng.standard_normal((COUNT // 2, DIM))
    pairs = np.column_stack([np.arange(0, COUNT, 2), np.arange(1, COUNT, 2), np.arange(COUNT // 2) % 3 > 0])
    np.savez(
        tmp_path / "question_pairs.npz", embeddings=rows.astype(np.float16), pairs=pairs.astype(np.int32)
    )
    embedded = rng.permutation(COUNT)[:500]
    new = rows[embedded] @ rng.standard_normal((DIM, NEW_DIM)) + 0.1 * rng.standard_normal((500, NEW_DIM))
    np.savez(tmp_path / "new.npz", rows=embedded, embeddings=new.astype(np.float32))
    return tmp_path


def test_no_calibration_text_is_linked_with_a_test_pair(folder: Path) -> None:
    with np.load(folder / "question_pairs.npz") as archive:
        pairs = archive["pairs"].astype(np.int64)
    with np.load(folder / "new.npz") as archive:
        rows, embeddings = archive["rows"], archive["embeddings"]
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=COUNT)
    duplicates = {tuple(pair) for a, b, label in pairs.tolist() if label for pair in ((a, b), (b, a))}
    folds = [load_switch_fold(folder, folder / "new.npz", seed=seed, quick=False) for seed in (0, 0, 1)]
    for fold in folds:
        own = (fold.stored @ fold.calibration_old.T).argmax(axis=0)
        assert not set(component[own].tolist()) & set(component[fold.query_rows].tolist())
        assert set(zip(fold.query_rows.tolist(), fold.duplicate_rows.tolist(), strict=True)) <= duplicates
        place = {row: number for number, row in enumerate(rows.tolist())}
        for given, row in ((fold.calibration_new, own), (fold.queries, fold.query_rows)):
            expected = embeddings[[place[one] for one in row.tolist()]]
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(given, expected, atol=1e-5)
    np.testing.assert_array_equal(folds[0].query_rows, folds[1].query_rows)
    assert not np.array_equal(folds[0].query_rows, folds[2].query_rows)


def test_recall_kept_is_that_of_a_loop_over_queries(folder: Path) -> None:
    fold = load_switch_fold(folder, folder / "new.npz", seed=0, quick=False)

    def recall(queries: np.ndarray, count: int) -> float:
        found = []
        for query, own, duplicate in zip(queries, fold.query_rows, fold.duplicate_rows, strict=True):
            others = np.delete(np.arange(COUNT), own)
            found.append(duplicate in others[np.argsort(-(fold.stored[others] @ query))[:count]])
        return float(np.mean(found))

    figures = list(fold_figures(fold, sizes=(60, 120)))
    assert len(figures) == 2 * 3 * 2
    for figure in figures:
        size, count = (60 if "60 pairs" in figure.case else 120), 10 if "first 10" in figure.case else 1
        queries = embedder_switch._mapped(fold, figure.method, size=size)
        kept = recall(queries, count) / recall(fold.stored[fold.query_rows], count)
        assert figure.value == pytest.approx(kept, abs=0.02)
        assert (figure.bench, figure.metric, figure.n) == (
            "lifelong",
            "duplicate_recall_kept",
            len(fold.queries),
        )
    with pytest.raises(CommandError, match="5000 calibration texts"):
        list(fold_figures(fold, sizes=(5000,)))


def test_figures_of_seeds_are_gathered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder_switch, "CALIBRATION_SIZES", (60, 120))
    means = list(switch_figures(folder, folder / "new.npz", seeds=2, quick=False).means())
    assert {figure.seeds for figure in means} == {2} and len(means) == 12
    quick = list(switch_figures(folder, folder / "new.npz", seeds=2, quick=True).means())
    assert {figure.seeds for figure in quick} == {1} and len(quick) == 6
    assert all("60 pairs" in figure.case for figure in quick)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rows": np.arange(5)}, "no .npz"),
        ({"rows": np.arange(5), "embeddings": np.ones((4, 3))}, "rows must be integers"),
        ({"rows": np.arange(5.0), "embeddings": np.ones((5, 3))}, "rows must be integers"),
        ({"rows": np.array([1, 1]), "embeddings": np.ones((2, 3))}, "distinct"),
        ({"rows": np.array([1, COUNT]), "embeddings": np.ones((2, 3))}, "below"),
    ],
)
def test_bad_file_of_new_embeddings_is_refused(folder: Path, arrays: dict, message: str) -> None:
    np.savez(folder / "bad.npz", **arrays)
    with pytest.raises(CommandError, match=message):
        load_switch_fold(folder, folder / "bad.npz", seed=0, quick=False)
    with pytest.raises(CommandError):
        load_switch_fold(folder / "none", folder / "new.npz", seed=0, quick=False)
