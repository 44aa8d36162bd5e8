"""Train a verifier from pairs of rows that are labelled the same or not.

Stacked generalisation (Wolpert 1992): what is learned first (metric, words) judges pairs of a fold that it
was not learned on, and the judges learn from that, so that they trust it as far as new pairs bear it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray

from hashing.config import require_int, require_positive, require_share
from hashing.deep.calibrating import fit_calibration
from hashing.deep.judges import fit_metric, fit_network
from hashing.deep.pairs import MIN_PAIRS, check_pairs, pair_folds
from hashing.deep.rule_made import make_pairs, near_cosines
from hashing.deep.words import choose_words, fit_evidence, fit_words
from hashing.embeddings import as_rows, check_training_rows, unit_rows
from hashing.errors import TrainingDataError
from hashing.evidence_network import EvidenceNetwork
from hashing.metrics import hit_rate_at_error, pair_auc, wrong_share_at_hit_rate
from hashing.pair_features import FEATURE_NAMES
from hashing.question_words import words_of
from hashing.trainer import Progress, no_progress
from hashing.verifier import TEXT_FEATURES_BEFORE, Judge, TextPart, Verifier, pair_cosines, text_features
from hashing.word_table import PreparedText, WordTable

WIDTH_LIMIT = 4096
EPOCHS_LIMIT = 1000
PROGRESS_PAIRS = 1000
EMBEDDING_WIDTH = 16
"""Hidden units of the embedding part's network, which reads two cosines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierConfig:
    """What `train_verifier` needs to know besides rows, pairs and texts.

    folds: parts of the pairs, each judged by what was learned on the others, 2..20.
    metric_width: dimensions of the learned metric, 1..4096 (at most those of the embeddings are used).
    metric_epochs: passes over the pairs, 1..1000. metric_dropout: of what it reads, in [0, 1).
    word_dim: dimensions of a word's meaning, 1..4096 (as above). word_least_count: texts that have a word for
    it to be learned, 2..1000000. evidence_penalty: ridge on what a word says of itself, above 0.
    rule_share: texts that each rule of `hashing.counterfactuals` makes, as a share of the pairs, in [0, 1).
    bins: units a feature, 1..256. hidden_width: of the text part's network, 1..4096.
    epochs: passes of both networks, 1..1000.
    dropout, input_dropout: of their hidden layers and of what they read, in [0, 1).
    seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    folds: int = 4
    metric_width: int = 128
    metric_epochs: int = 4
    metric_dropout: float = 0.1
    word_dim: int = 64
    word_least_count: int = 10
    evidence_penalty: float = 50.0
    rule_share: float = 0.002
    bins: int = 12
    hidden_width: int = 64
    epochs: int = 5
    dropout: float = 0.3
    input_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_int("folds", self.folds, low=2, high=20)
        for key in ("metric_width", "word_dim", "hidden_width"):
            require_int(key, getattr(self, key), low=1, high=WIDTH_LIMIT)
        for key in ("metric_epochs", "epochs"):
            require_int(key, getattr(self, key), low=1, high=EPOCHS_LIMIT)
        require_int("word_least_count", self.word_least_count, low=2, high=1_000_000)
        require_int("bins", self.bins, low=1, high=256)
        require_int("seed", self.seed, low=0, high=2**63 - 1)
        require_positive("evidence_penalty", self.evidence_penalty)
        for key in ("metric_dropout", "rule_share", "dropout", "input_dropout"):
            require_share(key, getattr(self, key), below=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """What is learned from. unit: float32 [r, dim], the rows that are in pairs. pairs: int64 [p, 3], into
    them. fold: int64 [p]. same: bool [p]."""

    unit: NDArray[np.float32]
    pairs: NDArray[np.int64]
    fold: NDArray[np.int64]
    same: NDArray[np.bool_]

    def cosines(self, metric: NDArray[np.float32], chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        first, second = self.pairs[chosen, 0], self.pairs[chosen, 1]
        return pair_cosines(metric, self.unit[first], self.unit[second])

    def training_parts(self, folds: int) -> list[NDArray[np.bool_]]:
        return [self.fold != number for number in range(folds)]


def train_verifier(
    embeddings: NDArray[np.floating],
    pairs: ArrayLike,
    *,
    texts: Sequence[str] | None,
    config: VerifierConfig,
    progress: Progress | None = None,
) -> Verifier:
    """Learn with what probability two rows may share an answer, and calibrate it.

    embeddings: float [n, dim], L2-normalised; may be memory-mapped. pairs: integers [p, 3] of row, row and 1
    (the same) or 0. texts: of each row, "" where unknown, or None. progress: stages "metric", "words",
    "compare", "judge". Only rows that are in pairs are read.

    An embedding part judges any pair, a text part those whose texts are both known; it is left out where
    fewer than MIN_PAIRS of a kind have texts. Folds are made by component: no row of a fold is linked to a
    row of another by any chain of pairs. Calibrations and metrics are of pairs that what judged them was not
    learned on, none of them made by rule. Equal seed, input and thread count give an equal verifier. How
    often a row occurs in pairs is not used.

    Metrics: pair_count, row_count, text_pair_count; and of held-out folds validation_auc_PART,
    validation_wrong_at_20_PART (share of wrong pairs among the 20% judged best) and validation_hit_rate_PART
    (at 1% wrong of all), PART one of cosine, embedding, text.

    Raises, before time is spent: EmbeddingsError; TrainingDataError as `hashing.deep.pairs.check_pairs`,
    for pairs that hang together so that no folds can be made, and for texts of another length than the rows.
    """
    report = progress if progress is not None else no_progress
    check_training_rows(embeddings)
    checked = check_pairs(pairs, row_count=embeddings.shape[0])
    if texts is not None and len(texts) != embeddings.shape[0]:
        raise TrainingDataError(f"got {len(texts)} texts for {embeddings.shape[0]} rows")
    fold = pair_folds(
        checked, row_count=embeddings.shape[0], folds=config.folds, rng=np.random.default_rng(config.seed)
    )
    rows, local = np.unique(checked[:, :2], return_inverse=True)
    learned = _Pairs(
        unit=unit_rows(as_rows(embeddings[rows])),
        pairs=np.column_stack([local.reshape(-1, 2), checked[:, 2]]),
        fold=fold,
        same=checked[:, 2] == 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        metric, cosines = _learn_metric(learned, config=config, progress=report)
        judge, scores = _learn_judge(
            cosines,
            learned.fold,
            learned.same,
            real=np.ones(learned.same.size, dtype=bool),
            width=EMBEDDING_WIDTH,
            config=config,
        )
        metrics = {"row_count": float(rows.size), "pair_count": float(checked.shape[0])}
        metrics |= _figures("cosine", cosines[:, 0], learned.same) | _figures(
            "embedding", scores, learned.same
        )
        text_part, text_metrics = None, {"text_pair_count": 0.0}
        if texts is not None:
            own_texts = [texts[row] for row in rows.tolist()]
            text_part, text_metrics = _learn_texts(
                learned, cosines, own_texts, config=config, progress=report
            )
    return Verifier(
        metric=metric, embedding_judge=judge, text_part=text_part, metrics={**metrics, **text_metrics}
    )


def _learn_metric(
    learned: _Pairs, *, config: VerifierConfig, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the metric of all pairs, and both cosines of each by the metric of the other folds, [p, 2]."""

    def fit(chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        return fit_metric(
            learned.unit,
            learned.pairs[chosen],
            width=config.metric_width,
            epochs=config.metric_epochs,
            dropout=config.metric_dropout,
            seed=config.seed,
        )

    cosines = np.empty((learned.pairs.shape[0], 2), dtype=np.float32)
    for fold in range(config.folds):
        progress("metric", fold, config.folds + 1)
        held_out = learned.fold == fold
        cosines[held_out] = learned.cosines(fit(~held_out), held_out)
    metric = fit(np.ones(learned.fold.size, dtype=bool))
    progress("metric", config.folds + 1, config.folds + 1)
    return metric, cosines


def _learn_texts(
    learned: _Pairs,
    cosines: NDArray[np.float32],
    texts: Sequence[str],
    *,
    config: VerifierConfig,
    progress: Progress,
) -> tuple[TextPart | None, dict[str, float]]:
    """Learn from the pairs whose texts are both known. texts: of each row of `learned`."""
    known = np.array([bool(words_of(text)) for text in texts])[learned.pairs[:, :2]].all(axis=1)
    learned = _Pairs(
        unit=learned.unit, pairs=learned.pairs[known], fold=learned.fold[known], same=learned.same[known]
    )
    same = learned.same
    counted = {"text_pair_count": float(same.size)}
    if (
        min(np.bincount(same[part], minlength=2).min() for part in learned.training_parts(config.folds))
        < MIN_PAIRS
    ):
        return None, counted
    words, parts = _learn_words(learned, texts, config=config, progress=progress)
    learned, cosines, texts = _with_rule_made(learned, cosines[known], texts, config=config)
    real = np.arange(learned.same.size) < same.size
    prepared, features = _compare(learned, cosines, texts, parts, progress=progress)
    counts = _word_counts(learned.pairs, prepared, word_count=len(words.words))
    evidence, features[:, 2] = _learn_evidence(
        counts, features, learned.fold, learned.same, real=real, config=config
    )
    progress("judge", 0, 1)
    judge, scores = _learn_judge(
        features, learned.fold, learned.same, real=real, width=config.hidden_width, config=config
    )
    progress("judge", 1, 1)
    part = TextPart(words=replace(words, evidence=evidence), judge=judge)
    return part, {**counted, **_figures("text", scores, same)}


def _with_rule_made(
    learned: _Pairs, cosines: NDArray[np.float32], texts: Sequence[str], *, config: VerifierConfig
) -> tuple[_Pairs, NDArray[np.float32], Sequence[str]]:
    """Add pairs made by rule behind the real ones, each in the fold of its real text."""
    rng = np.random.default_rng(config.seed)
    rows = np.unique(learned.pairs[:, :2])
    pairs, made = make_pairs(texts, rows, per_rule=int(config.rule_share * learned.same.size), rng=rng)
    fold_of = np.zeros(len(texts), dtype=np.int64)
    fold_of[learned.pairs[:, :2]] = learned.fold[:, None]
    extended = _Pairs(
        unit=learned.unit,
        pairs=np.concatenate([learned.pairs, pairs]),
        fold=np.concatenate([learned.fold, fold_of[pairs[:, 0]]]),
        same=np.concatenate([learned.same, pairs[:, 2] == 1]),
    )
    drawn = near_cosines(cosines, count=pairs.shape[0], rng=rng)
    return extended, np.concatenate([cosines, drawn]), [*texts, *made]


def _learn_words(
    learned: _Pairs, texts: Sequence[str], *, config: VerifierConfig, progress: Progress
) -> tuple[WordTable, list[WordTable]]:
    """Return the words of all rows in pairs, and the same words learned without the rows of each fold."""
    rows = np.unique(learned.pairs[:, :2])
    words, rarity = choose_words([texts[row] for row in rows.tolist()], least_count=config.word_least_count)

    def fit(chosen: NDArray[np.int64]) -> WordTable:
        return fit_words(
            learned.unit[chosen],
            [texts[row] for row in chosen.tolist()],
            words=words,
            rarity=rarity,
            word_dim=min(config.word_dim, learned.unit.shape[1]),
        )

    parts = []
    for number, part in enumerate(learned.training_parts(config.folds)):
        progress("words", number, config.folds + 1)
        parts.append(fit(np.unique(learned.pairs[part, :2])))
    table = fit(rows)
    progress("words", config.folds + 1, config.folds + 1)
    return table, parts


def _compare(
    learned: _Pairs,
    cosines: NDArray[np.float32],
    texts: Sequence[str],
    parts: Sequence[WordTable],
    *,
    progress: Progress,
) -> tuple[list[PreparedText | None], NDArray[np.float32]]:
    """Return the prepared texts of the rows in pairs, and what the text part's judge reads of each pair.

    parts: of each fold, words that were not learned on it. The words' evidence is 0, not learned yet.
    """
    prepared: list[PreparedText | None] = [None] * len(texts)
    features = np.empty((learned.same.size, TEXT_FEATURES_BEFORE + len(FEATURE_NAMES)), dtype=np.float32)
    count = learned.same.size
    for number, (first, second) in enumerate(learned.pairs[:, :2].tolist()):
        if number % PROGRESS_PAIRS == 0:
            progress("compare", number, count)
        words = parts[learned.fold[number]]
        query = prepared[first] = prepared[first] or words.prepare(texts[first])
        row = prepared[second] = prepared[second] or words.prepare(texts[second])
        assert query is not None and row is not None, "pairs of unknown texts are left out"
        features[number] = text_features(cosines[number : number + 1], query, [row])[0]
    progress("compare", count, count)
    return prepared, features


def _word_counts(
    pairs: NDArray[np.int64], prepared: Sequence[PreparedText | None], *, word_count: int
) -> scipy.sparse.csr_matrix:
    """Return how often each word is unmatched and matched, [p, 2 v], as `pair_features` sums it."""
    ids = [text.ids[text.ids >= 0] if text is not None else np.empty(0, dtype=np.int64) for text in prepared]
    rows = np.repeat(np.arange(len(ids)), [own.size for own in ids])
    own = scipy.sparse.csr_matrix(
        (np.ones(rows.size, dtype=np.float32), (rows, np.concatenate(ids))), shape=(len(ids), word_count)
    )
    first, second = own[pairs[:, 0]], own[pairs[:, 1]]
    matched = first.multiply(second > 0) + second.multiply(first > 0)
    return scipy.sparse.hstack([first + second - matched, matched / 2], format="csr", dtype=np.float32)


def _learn_evidence(
    counts: scipy.sparse.csr_matrix,
    features: NDArray[np.float32],
    fold: NDArray[np.int64],
    same: NDArray[np.bool_],
    *,
    real: NDArray[np.bool_],
    config: VerifierConfig,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the evidence of words by all real pairs, [v, 2], and that of each pair by the other folds,
    [p]."""
    known = np.sign(features) * np.log1p(np.abs(features))
    spread = known.std(axis=0)
    known = ((known - known.mean(axis=0)) / np.where(spread > 0, spread, 1))[:, spread > 0]

    def fit(chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        return fit_evidence(counts[chosen], known[chosen], same[chosen], penalty=config.evidence_penalty)

    of_pairs = np.zeros(same.size, dtype=np.float32)
    for number in range(config.folds):
        held_out = fold == number
        of_pairs[held_out] = counts[held_out] @ fit(~held_out & real).T.ravel()
    return fit(real), of_pairs


def _learn_judge(
    features: NDArray[np.float32],
    fold: NDArray[np.int64],
    same: NDArray[np.bool_],
    *,
    real: NDArray[np.bool_],
    width: int,
    config: VerifierConfig,
) -> tuple[Judge, NDArray[np.float64]]:
    """Return the judge that learned from all pairs, and the score of each real one by one of the other folds.

    The calibration is of the real pairs alone.
    """

    def fit(chosen: NDArray[np.bool_]) -> EvidenceNetwork:
        return fit_network(
            features[chosen],
            same[chosen],
            bins=config.bins,
            width=width,
            epochs=config.epochs,
            dropout=config.dropout,
            input_dropout=config.input_dropout if features.shape[1] > 2 else 0.0,
            seed=config.seed,
        )

    scores = np.zeros(same.size)
    for number in range(config.folds):
        held_out = fold == number
        if held_out.any():
            scores[held_out] = fit(~held_out).score(features[held_out])
    network = fit(np.ones(same.size, dtype=bool))
    return Judge(network=network, calibration=fit_calibration(scores[real], same[real])), scores[real]


def _figures(part: str, scores: NDArray[np.floating], same: NDArray[np.bool_]) -> dict[str, float]:
    return {
        f"validation_auc_{part}": pair_auc(scores, same),
        f"validation_wrong_at_20_{part}": wrong_share_at_hit_rate(scores, same, hit_rate=0.2),
        f"validation_hit_rate_{part}": hit_rate_at_error(scores, same, error=0.01),
    }
