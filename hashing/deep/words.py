"""What a verifier learns of words: their meaning from the embeddings of texts, their evidence from pairs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hashing.embeddings import unit_rows
from hashing.question_words import words_of
from hashing.word_table import EVIDENCE_COLUMNS, WordTable

RIDGE = 5.0
"""Penalty of a word's meaning, in texts that have the word: rare words stay near 0 rather than memorise."""

GRADIENT_STEPS = 40
GRADIENT_TOLERANCE = 1e-6
EVIDENCE_STEPS = 60
EVIDENCE_TOLERANCE = 1e-3
AXES_ROWS_LIMIT = 8000


def choose_words(texts: Sequence[str], *, least_count: int) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Return the words that at least `least_count` texts have, sorted, and their rarity, float32 [v]."""
    counts = Counter(word for text in texts for word in _distinct(text))
    words = tuple(sorted(word for word, count in counts.items() if count >= least_count))
    rarity = np.array([np.log(len(texts) / counts[word]) for word in words], dtype=np.float32)
    return words, rarity


def fit_words(
    embeddings: NDArray[np.float32],
    texts: Sequence[str],
    *,
    words: tuple[str, ...],
    rarity: NDArray[np.float32],
    word_dim: int,
) -> WordTable:
    """Learn the meaning of words from the embeddings of texts, float32 [n, dim]; of evidence, none yet.

    A word's meaning is its share of the embeddings, projected on their `word_dim` principal axes: the ridge
    regression of embeddings on the words of their texts.
    """
    place = {word: column for column, word in enumerate(words)}
    columns = [
        np.array([place[word] for word in _distinct(text) if word in place], dtype=np.int64) for text in texts
    ]
    lengths = np.array([own.size for own in columns])
    counted = scipy.sparse.csr_matrix(
        (
            np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths),
            np.concatenate(columns),
            np.concatenate([[0], np.cumsum(lengths)]),
        ),
        shape=(len(texts), len(words)),
    )
    meaning = _ridge(counted, _principal(embeddings, count=word_dim)).astype(np.float32)
    return WordTable(
        words=words,
        rarity=rarity,
        meaning=unit_rows(meaning),
        evidence=np.zeros((len(words), EVIDENCE_COLUMNS), dtype=np.float32),
    )


def fit_evidence(
    counts: scipy.sparse.csr_matrix, features: NDArray[np.float32], same: NDArray[np.bool_], *, penalty: float
) -> NDArray[np.float32]:
    """Learn what each word says beside the features, float32 [v, EVIDENCE_COLUMNS]: logistic regression.

    counts: float32 [p, EVIDENCE_COLUMNS * v], how often a word is unmatched, then matched. features: [p, k],
    of variance 1. penalty: ridge on the weights of both.
    """
    if counts.shape[1] == 0:
        return np.zeros((0, EVIDENCE_COLUMNS), dtype=np.float32)
    both = scipy.sparse.hstack([counts, scipy.sparse.csr_matrix(features)], format="csr")
    model = LogisticRegression(C=1 / penalty, max_iter=EVIDENCE_STEPS, tol=EVIDENCE_TOLERANCE)
    with warnings.catch_warnings():  # where it is stopped early is a regularisation like the penalty
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(both, same)
    weights = model.coef_[0, : counts.shape[1]].reshape(EVIDENCE_COLUMNS, -1)
    return np.ascontiguousarray(weights.T, dtype=np.float32)


def _distinct(text: str) -> list[str]:
    return sorted({word for word, _ in words_of(text)})


def _principal(embeddings: NDArray[np.float32], *, count: int) -> NDArray[np.float64]:
    """Return the rows on their first principal axes, float64 [n, min(count, n, dim)]."""
    centred = embeddings - embeddings.mean(axis=0)
    step = max(1, embeddings.shape[0] // AXES_ROWS_LIMIT)
    axes = np.linalg.svd(centred[::step].astype(np.float64), full_matrices=False)[2][:count]
    projected: NDArray[np.float64] = centred @ axes.T
    return projected


def _ridge(counted: scipy.sparse.csr_matrix, targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve (X'X + RIDGE I) W = X'Y by conjugate gradients, all columns of Y at once; [v, targets]."""
    solution = np.zeros((counted.shape[1], targets.shape[1]))
    residual = counted.T @ targets
    direction, squares = residual.copy(), (residual**2).sum(axis=0)
    first = squares.copy()
    for _ in range(GRADIENT_STEPS):
        if not (squares > GRADIENT_TOLERANCE**2 * first).any():
            break
        image = counted.T @ (counted @ direction) + RIDGE * direction
        step = squares / np.maximum((direction * image).sum(axis=0), 1e-30)
        solution += step * direction
        residual = residual - step * image
        new = (residual**2).sum(axis=0)
        direction = residual + new / np.maximum(squares, 1e-30) * direction
        squares = new
    return solution
