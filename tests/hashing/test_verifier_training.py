import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hashing import CheckpointError, ConfigError, DimensionError, EmbeddingsError, TrainingDataError
from hashing.metrics import pair_auc
from hashing.sealed_tensors import header_document, seal_tensors, unseal_tensors
from hashing.verifier import Verifier, dump_verifier, load_verifier, pair_cosines

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from hashing.deep.calibrating import fit_calibration  # noqa: E402
from hashing.deep.judges import fit_metric, fit_network  # noqa: E402
from hashing.deep.pairs import pair_folds  # noqa: E402
from hashing.deep.verifier import VerifierConfig, train_verifier  # noqa: E402

DATA = Path(__file__).parents[2].parent / "shared" / "data"
DIM = 16
CONFIG = VerifierConfig(
    folds=2, metric_width=8, word_dim=4, word_least_count=5, hidden_width=8, bins=4, epochs=8
)
TOPICS = ("delhi", "london", "python", "guitar", "cricket", "weight", "movie", "exam")


def _rows_pairs_texts(*, pair_count: int = 500, seed: int = 0):
    """Pairs of one topic, whose rows are near each other; they are the same where they name one year."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((len(TOPICS), DIM))
    rows, pairs, texts = [], [], []
    for pair in range(pair_count):
        topic = int(rng.integers(len(TOPICS)))
        same = int(rng.integers(2))
        years = (2010, 2010) if same else (2010, 2016)
        for year in years:
            rows.append(directions[topic] + rng.standard_normal(DIM))
            texts.append(f"What happened in {TOPICS[topic]} in {year}?")
        pairs.append((2 * pair, 2 * pair + 1, same))
    unit = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32), np.array(pairs), texts


ROWS, PAIRS, TEXTS = _rows_pairs_texts()


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return train_verifier(ROWS, PAIRS, texts=TEXTS, config=CONFIG)


def _judged(verifier: Verifier, rows, pairs, texts) -> np.ndarray:
    return np.array(
        [
            verifier.probabilities(
                rows[a],
                rows[b : b + 1],
                query_text=texts[a] if texts else "",
                texts=[texts[b]] if texts else (),
            )[0]
            for a, b, _ in pairs
        ]
    )


def test_texts_tell_what_no_distance_can(verifier: Verifier) -> None:
    rows, pairs, texts = _rows_pairs_texts(pair_count=150, seed=1)
    same = pairs[:, 2] == 1
    judged = _judged(verifier, rows, pairs, texts)
    assert pair_auc(judged, same) > 0.99
    assert np.mean((judged - same) ** 2) < 0.06  # calibrated: sure and right
    assert pair_auc(_judged(verifier, rows, pairs, None), same) < 0.7


def test_metrics_are_of_held_out_folds(verifier: Verifier) -> None:
    metrics = verifier.metrics
    assert (metrics["row_count"], metrics["pair_count"], metrics["text_pair_count"]) == (1000, 500, 500)
    assert metrics["validation_auc_text"] > 0.99 > 0.7 > metrics["validation_auc_cosine"]
    assert {f"validation_hit_rate_{part}" for part in ("cosine", "embedding", "text")} <= set(metrics)


def test_probabilities_are_never_certain(verifier: Verifier) -> None:
    judged = verifier.probabilities(ROWS[0], ROWS, query_text=TEXTS[0], texts=TEXTS)
    assert judged.dtype == np.float64 and judged.shape == (1000,)
    assert judged.min() > 0 and judged.max() < 1


def test_row_without_text_is_judged_by_its_embedding(verifier: Verifier) -> None:
    by_embedding = verifier.probabilities(ROWS[0], ROWS[:4])
    by_text = verifier.probabilities(ROWS[0], ROWS[:4], query_text=TEXTS[0], texts=TEXTS[:4])
    mixed = verifier.probabilities(
        ROWS[0], ROWS[:4], query_text=TEXTS[0], texts=[TEXTS[0], "", TEXTS[2], " \n"]
    )
    np.testing.assert_allclose(mixed[[0, 2]], by_text[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(mixed[[1, 3]], by_embedding[[1, 3]], atol=1e-6)
    for texts in ((), ["", "", "", ""]):
        got = verifier.probabilities(ROWS[0], ROWS[:4], query_text=TEXTS[0], texts=texts)
        np.testing.assert_array_equal(got, by_embedding)
    np.testing.assert_array_equal(verifier.probabilities(ROWS[0], ROWS[:4], texts=TEXTS[:4]), by_embedding)


def test_shortlist_of_no_rows_has_no_probabilities(verifier: Verifier) -> None:
    assert verifier.probabilities(ROWS[0], ROWS[:0], query_text="a", texts=[]).shape == (0,)


def test_verifier_trained_without_texts_reads_none() -> None:
    plain = train_verifier(ROWS, PAIRS, texts=None, config=CONFIG)
    assert plain.text_part is None and plain.metrics["text_pair_count"] == 0
    np.testing.assert_array_equal(
        plain.probabilities(ROWS[0], ROWS[:3], query_text="a", texts=["b", "c", "d"]),
        plain.probabilities(ROWS[0], ROWS[:3]),
    )
    assert load_verifier(dump_verifier(plain)).verifier_id == plain.verifier_id


def test_few_known_texts_leave_the_text_part_out() -> None:
    texts = ["" if row >= 60 else text for row, text in enumerate(TEXTS)]
    sparse = train_verifier(ROWS, PAIRS, texts=texts, config=CONFIG)
    assert sparse.text_part is None and sparse.metrics["text_pair_count"] == 30


def test_equal_seeds_give_equal_verifiers_whatever_rows_are_in_no_pair(verifier: Verifier) -> None:
    torch.rand(3)  # the caller's generator is neither read nor moved
    state = torch.random.get_rng_state()
    rows = np.concatenate([ROWS, -ROWS[:50]]).astype(np.float64)
    again = train_verifier(rows, PAIRS, texts=[*TEXTS, *["unread words"] * 50], config=CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.verifier_id == verifier.verifier_id


def test_other_seed_gives_another_verifier_and_unknown_texts_are_left_out(verifier: Verifier) -> None:
    texts = ["" if row % 10 == 0 else text for row, text in enumerate(TEXTS)]
    other = train_verifier(ROWS, PAIRS, texts=texts, config=replace(CONFIG, seed=1))
    assert other.metrics["text_pair_count"] == 400 and other.metrics["validation_auc_text"] > 0.95
    assert not np.array_equal(other.metric, verifier.metric)


def test_loaded_verifier_judges_alike(verifier: Verifier) -> None:
    loaded = load_verifier(dump_verifier(verifier))
    assert loaded.verifier_id == verifier.verifier_id and loaded.metrics == verifier.metrics
    np.testing.assert_array_equal(
        loaded.probabilities(ROWS[0], ROWS[:9], query_text=TEXTS[0], texts=TEXTS[:9]),
        verifier.probabilities(ROWS[0], ROWS[:9], query_text=TEXTS[0], texts=TEXTS[:9]),
    )
    assert dump_verifier(loaded) == dump_verifier(verifier)


def test_metrics_are_no_part_of_the_identity(verifier: Verifier) -> None:
    other = Verifier(
        metric=verifier.metric,
        embedding_judge=verifier.embedding_judge,
        text_part=verifier.text_part,
        metrics={"validation_auc_text": 0.5},
    )
    assert other.verifier_id == verifier.verifier_id and len(verifier.verifier_id) == 32


def test_bytes_that_are_not_the_dump_are_refused(verifier: Verifier) -> None:
    content = dump_verifier(verifier)
    rng = np.random.default_rng(0)
    spoiled = [b"", content[:100], content[:-1], content + b"\0"]
    for place in rng.integers(0, len(content), size=60):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        spoiled.append(bytes(changed))
    for wrong in spoiled:
        with pytest.raises(CheckpointError):
            load_verifier(wrong)


def _resealed(verifier: Verifier, *, tensors=None, without: str = "", **fields) -> bytes:
    """A file whose checksum is right, and whose content is not."""
    content = dump_verifier(verifier)
    document = header_document(content)
    held = {**unseal_tensors(content, document=document), **(tensors or {})}
    held.pop(without, None)
    document = {**document, **fields}
    version = document.pop("format_version")
    kind = document.pop("format")
    return seal_tensors(kind, held, document, version=version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "version 9 is unknown"),
        ({"format": "nearhit-encoder"}, "format is 'nearhit-encoder'"),
        ({"features": ["words"]}, "other features of texts"),
        ({"verifier_id": "0" * 32}, "not 0000"),
        ({"identity": {"words": ["a", "a"]}}, "distinct"),
        ({"identity": {"words": ["a", "b"]}}, "there are 2 words"),
        ({"identity": {"words": [""]}}, "list of strings"),
        ({"without": "text.calibration.scores"}, "missing"),
        ({"without": "metric"}, "missing"),
        ({"tensors": {"embedding.calibration.scores": np.zeros(3)}}, r"float64\[3\]|does not rise"),
        ({"tensors": {"metric": np.zeros((DIM, 8), dtype=np.float64)}}, "float64"),
        ({"tensors": {"metric": np.full((DIM, 8), np.nan, dtype=np.float32)}}, "finite"),
    ],
)
def test_inconsistent_content_is_refused(verifier: Verifier, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_verifier(_resealed(verifier, **change))


def test_network_that_reads_other_columns_is_refused(verifier: Verifier) -> None:
    column = verifier.embedding_judge.network.column.copy()
    column[0] = 2
    with pytest.raises(CheckpointError, match="reads features that there are not"):
        load_verifier(_resealed(verifier, tensors={"embedding.network.column": column}))


def test_certain_calibration_is_refused(verifier: Verifier) -> None:
    certain = verifier.embedding_judge.calibration.probabilities.copy()
    certain[-1] = 1.0
    with pytest.raises(CheckpointError, match="reaches 0 or 1"):
        load_verifier(_resealed(verifier, tensors={"embedding.calibration.probabilities": certain}))


@pytest.mark.parametrize(
    ("query", "rows", "texts", "error"),
    [
        (ROWS[0][:8], ROWS[:2], (), DimensionError),
        (ROWS[0], ROWS[:2, :8], (), DimensionError),
        (ROWS[:1], ROWS[:2], (), EmbeddingsError),
        (ROWS[0] * np.nan, ROWS[:2], (), EmbeddingsError),
        (ROWS[0], ROWS[:2] * np.inf, (), EmbeddingsError),
        (ROWS[0], ROWS[:2], ["a"], EmbeddingsError),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_queries_are_refused(verifier: Verifier, query, rows, texts, error: type[Exception]) -> None:
    with pytest.raises(error):
        verifier.probabilities(query, rows, query_text="a", texts=texts)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda rows, pairs, texts: (rows * np.nan, pairs, texts), EmbeddingsError, "finite"),
        (lambda rows, pairs, texts: (rows, pairs, texts[:-1]), TrainingDataError, "999 texts for 1000 rows"),
        (lambda rows, pairs, texts: (rows, pairs[pairs[:, 2] == 1], texts), TrainingDataError, "one class"),
        (lambda rows, pairs, texts: (rows, pairs[:30], texts), TrainingDataError, "at least 20"),
        (lambda rows, pairs, texts: (rows[:20], pairs, texts[:20]), TrainingDataError, "refers to rows"),
        (
            lambda rows, pairs, texts: (rows, pairs * [0, 1, 1], texts),
            TrainingDataError,
            "linked into 1 groups",
        ),
    ],
    ids=["nan", "texts", "one class", "few", "missing row", "one component"],
)
def test_bad_training_input_is_refused_before_time_is_spent(spoil, error, message: str) -> None:
    rows, pairs, texts = spoil(ROWS, PAIRS, TEXTS)
    stages: list[str] = []
    with pytest.raises(error, match=message):
        train_verifier(
            rows,
            pairs,
            texts=texts,
            config=CONFIG,
            progress=lambda stage, _done, _total: stages.append(stage),
        )
    assert stages == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("folds", 1),
        ("metric_width", 0),
        ("bins", 257),
        ("dropout", 1.0),
        ("evidence_penalty", 0.0),
        ("word_least_count", 1),
        ("seed", -1),
        ("epochs", True),
    ],
)
def test_settings_out_of_range_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        VerifierConfig(**{key: value})


def test_numpy_network_gives_the_scores_of_torch() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 5)).astype(np.float32)
    same = features[:, 0] * features[:, 1] > 0
    torch.manual_seed(0)
    network = fit_network(features, same, bins=6, width=12, epochs=20, dropout=0.0, input_dropout=0.0, seed=0)
    weights = {name: torch.from_numpy(array.astype(np.float64)) for name, array in network.arrays().items()}
    units = torch.from_numpy(network.units(features).astype(np.float64))
    hidden = torch.relu(units @ weights["hidden"] + weights["hidden_bias"])
    expected = hidden @ weights["output"] + weights["bias"]
    np.testing.assert_allclose(network.score(features), expected.numpy(), atol=1e-5)
    assert pair_auc(network.score(features), same) > 0.9  # an interaction, which no sum of features gives


def test_units_are_piecewise_linear_between_quantiles() -> None:
    features = np.repeat(np.arange(5, dtype=np.float32)[:, None], 2, axis=1)
    features[:, 1] = 7  # says nothing: no unit
    network = fit_network(
        features, np.arange(5) > 2, bins=2, width=2, epochs=1, dropout=0.0, input_dropout=0.0, seed=0
    )
    got = network.units(np.array([[-1, 0], [1, 0], [2, 0], [3.5, 0], [9, 0]], dtype=np.float32))
    np.testing.assert_allclose(got, [[0, 0], [0.5, 0], [1, 0], [1, 0.75], [1, 1]])


def test_metric_learns_which_directions_count() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.standard_normal((2, 600, 12))
    same = rng.integers(0, 2, size=600)
    other[:, :4] = np.where(same[:, None] == 1, first[:, :4] + 0.2 * other[:, :4], other[:, :4])
    rows = np.concatenate([first, other])
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    pairs = np.column_stack([np.arange(600), 600 + np.arange(600), same])
    torch.manual_seed(0)
    metric = fit_metric(rows, pairs[:400], width=12, epochs=60, dropout=0.0, seed=0)
    cosines = pair_cosines(metric, rows[pairs[400:, 0]], rows[pairs[400:, 1]])
    held_out = same[400:] == 1
    assert pair_auc(cosines[:, 1], held_out) > pair_auc(cosines[:, 0], held_out) + 0.05


@pytest.mark.parametrize("count", [1, 30, 1000])
def test_calibration_rises_and_is_never_certain(count: int) -> None:
    rng = np.random.default_rng(count)
    scores = rng.standard_normal(count)
    calibration = fit_calibration(scores, rng.random(count) < 1 / (1 + np.exp(-3 * scores)))
    judged = calibration.probability(np.linspace(-9, 9, 500))
    assert (np.diff(judged) >= 0).all() and judged[0] > 0 and judged[-1] < 1
    assert (np.diff(calibration.scores) > 0).all() and (np.diff(calibration.probabilities) > 0).all()


def test_calibrated_probabilities_are_the_shares() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-3, 3, size=40_000)
    truth = 1 / (1 + np.exp(-(scores**3) / 4))
    calibration = fit_calibration(scores[:20_000], rng.random(20_000) < truth[:20_000])
    np.testing.assert_allclose(calibration.probability(scores[20_000:]), truth[20_000:], atol=0.08)


def test_folds_share_no_row_and_are_of_equal_size() -> None:
    rng = np.random.default_rng(0)
    pairs = np.column_stack([rng.integers(0, 1500, size=(600, 2)), rng.integers(0, 2, size=600)])
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    fold = pair_folds(pairs, row_count=1500, folds=3, rng=rng)
    rows = [set(pairs[fold == number, :2].ravel().tolist()) for number in range(3)]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
    sizes = np.bincount(fold)
    assert sizes.sum() == len(pairs) and sizes.min() > 100


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
def test_real_questions_are_judged_better_than_by_their_cosine() -> None:
    with np.load(DATA / "question_pairs.npz") as archive:
        pairs = archive["pairs"][:4000].astype(np.int64)
        rows = archive["embeddings"][: pairs[:, :2].max() + 1].astype(np.float32)
    texts = (DATA / "question_pairs.txt").read_text(encoding="utf-8").split("\n")[: len(rows)]
    metrics = train_verifier(rows, pairs, texts=texts, config=VerifierConfig(folds=2)).metrics
    assert metrics["validation_auc_text"] > metrics["validation_auc_cosine"] + 0.01
    assert metrics["validation_auc_embedding"] > metrics["validation_auc_cosine"] - 0.01


def test_serving_loads_neither_torch_nor_sklearn(verifier: Verifier, tmp_path) -> None:
    (tmp_path / "verifier").write_bytes(dump_verifier(verifier))
    program = (
        "import sys, numpy; from pathlib import Path; from hashing.verifier import load_verifier;"
        f"verifier = load_verifier(Path({str(tmp_path / 'verifier')!r}).read_bytes());"
        f"row = numpy.ones({DIM}, dtype=numpy.float32);"
        "verifier.probabilities(row, row[None], query_text='a b', texts=['b c']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
