"""What the benchmarks compute besides times: rows, truth, recall, crossings, lines."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.bench.crossovers import crossing
from scripts.bench.data import Dataset, exact_nearest, grow, load_real, recall, reduce_dim, unit_rows
from scripts.bench.plot import PlotPoint, write_plot

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dataset() -> Dataset:
    """200 rows and 20 queries of 16 dimensions."""
    draw = np.random.default_rng(0)
    return Dataset(
        name="normal",
        rows=unit_rows(draw.standard_normal((200, 16))).astype(np.float16),
        queries=unit_rows(draw.standard_normal((20, 16))),
    )


def brute_force(dataset: Dataset, *, count: int) -> NDArray[np.int64]:
    cosines = dataset.queries.astype(np.float64) @ unit_rows(dataset.rows).astype(np.float64).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def test_exact_nearest_is_what_brute_force_finds(dataset: Dataset) -> None:
    assert np.array_equal(exact_nearest(dataset, count=5).ids, brute_force(dataset, count=5))


def test_recall_is_the_share_of_the_true_nearest_found(dataset: Dataset) -> None:
    truth = exact_nearest(dataset, count=10)
    found = truth.ids.copy()
    found[:, 5:] = -1
    assert recall(dataset, truth, truth.ids, k=10) == 1.0
    assert recall(dataset, truth, found, k=10) == 0.5
    assert recall(dataset, truth, truth.ids[:, ::-1], k=1) == 0.0


def test_recall_counts_a_row_as_near_as_the_true_one(dataset: Dataset) -> None:
    rows = dataset.rows.copy()
    rows[100:] = rows[:100]
    doubled = replace(dataset, rows=rows)
    truth = exact_nearest(doubled, count=1)
    assert recall(doubled, truth, (truth.ids + 100) % 200, k=1) == 1.0


def test_recall_counts_a_row_found_twice_once(dataset: Dataset) -> None:
    truth = exact_nearest(dataset, count=10)
    found = np.repeat(truth.ids[:, :1], 10, axis=1)
    assert recall(dataset, truth, found, k=10) == pytest.approx(0.1)


def test_grown_rows_keep_the_real_ones_and_are_of_norm_1(dataset: Dataset) -> None:
    grown = grow(dataset, row_count=1_000, seed=3)
    real = {row.tobytes() for row in dataset.rows}
    norms = np.linalg.norm(grown.rows.astype(np.float32), axis=1)
    assert len(grown.rows) == 1_000
    assert real <= {row.tobytes() for row in grown.rows}
    assert np.allclose(norms, 1, atol=2e-3)
    assert np.array_equal(grown.rows, grow(dataset, row_count=1_000, seed=3).rows)


def test_a_dataset_is_cut_to_rows_of_its_own(dataset: Dataset) -> None:
    cut = grow(dataset, row_count=50, seed=0)
    assert len({row.tobytes() for row in cut.rows} & {row.tobytes() for row in dataset.rows}) == 50


def test_fewer_dimensions_keep_rows_and_queries_of_norm_1(dataset: Dataset) -> None:
    reduced = reduce_dim(dataset, dim=4)
    assert reduced.rows.shape == (200, 4)
    assert np.allclose(np.linalg.norm(reduced.queries, axis=1), 1, atol=1e-5)


def test_held_out_queries_are_no_rows_and_tuning_has_others(tmp_path: Path) -> None:
    write_embeddings(tmp_path, count=800)
    reported = load_real(tmp_path, quick=False, tuning=False)
    tuned = load_real(tmp_path, quick=False, tuning=True)
    rows = {row.tobytes() for row in reported.rows}
    queries = {row.astype(np.float16).tobytes() for row in reported.queries}
    other_queries = {row.astype(np.float16).tobytes() for row in tuned.queries}
    assert len(queries) == len(other_queries) == 20
    assert not queries & other_queries
    assert not rows & (queries | other_queries)
    assert np.array_equal(reported.rows, tuned.rows)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({100: 1.0, 10_000: 1.0}, {100: 2.0, 10_000: 0.5}, 1_000.0),
        ({100: 1.0, 1_000: 2.0}, {100: 0.5, 1_000: 1.0}, 100.0),
        ({100: 1.0, 1_000: 1.0}, {100: 2.0, 1_000: 2.0}, None),
        ({100: 1.0, 1_000: 1.0, 10_000: 1.0}, {100: 0.5, 1_000: 2.0, 10_000: 2.0}, None),
    ],
)
def test_crossing_is_where_the_second_path_wins_for_good(
    first: dict[int, float], second: dict[int, float], expected: float | None
) -> None:
    assert crossing(first, second) == (expected if expected is None else pytest.approx(expected))


def test_a_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [
        PlotPoint(method="a", recall=share, latency_ms=share / 2, bytes_per_row=400.0) for share in (0.9, 1.0)
    ]
    written = write_plot(points, tmp_path / "curve", title="rows", recall_name="recall@10")
    assert [path.name for path in written] == ["curve.png", "curve.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in written[1].read_bytes()


def test_a_quick_search_benchmark_prints_json_lines(nearhit: Run, tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    write_embeddings(tmp_path, count=1_000)
    chosen = ("--methods", "codes_rerank", "faiss_binary_flat", "--bits", "64")
    done = nearhit("bench", "search", "--data", str(tmp_path), "--quick", "--json", *chosen)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    metrics = {(line["method"], line["metric"]) for line in lines}
    assert {line["bench"] for line in lines} == {"search"}
    assert {"recall_at_1", "recall_at_10", "p50_ms", "build_seconds", "bytes_per_row"} <= {
        metric for method, metric in metrics if method == "codes_rerank"
    }
    assert all(line["value"] <= 1 for line in lines if line["metric"].startswith("recall"))


def write_embeddings(folder: Path, *, count: int) -> None:
    """Two files of half the rows each, of 64 dimensions."""
    rows = unit_rows(np.random.default_rng(1).standard_normal((2 * count, 64))).astype(np.float16)
    np.savez(folder / "question_pairs.npz", embeddings=rows[:count])
    np.savez(folder / "intents.npz", embeddings=rows[count:])
