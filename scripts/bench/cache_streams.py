"""Streams of requests for `nearhit bench cache`: real questions in a drawn order, and which answer fits
which."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hashing.deep.pairs import check_pairs, connected_components
from hashing.verifier import Verifier
from scripts.arguments import CommandError
from scripts.bench.data import unit_rows
from scripts.bench.pair_folds import read_question_texts

INTENT_REQUESTS = 11_000
QUESTION_REQUESTS = 12_000
QUICK_REQUESTS = 1_500
MOST_SHARE = 0.5
"""Of the rows, that a stream takes at the most: the others may be learned from."""

OUT_OF_SCOPE = "oos"
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Requests, in an order that is drawn anew for each shuffle.

    vectors: float32 [n, dim], unit. answers: int64 [n], equal where responses are. rejected: pairs of
    answers, smaller one first, that people said do not fit each other; None: any two that differ.
    probabilities: what a verifier says of a request and some others, by row; None: there is none.
    """

    name: str
    vectors: NDArray[np.float32]
    answers: NDArray[np.int64]
    rejected: frozenset[tuple[int, int]] | None = None
    probabilities: Callable[[int, Sequence[int]], list[float]] | None = None

    def order(self, shuffle: int) -> NDArray[np.int64]:
        """The rows in the order of one shuffle."""
        return np.random.default_rng(shuffle).permutation(len(self.vectors))

    def is_right(self, request: int, entry: int) -> bool | None:
        """Whether the answer of one row fits another; None where nobody said."""
        own, other = int(self.answers[request]), int(self.answers[entry])
        if own == other:
            return True
        if self.rejected is None or (min(own, other), max(own, other)) in self.rejected:
            return False
        return None


def intent_stream(folder: Path, *, quick: bool) -> Stream:
    """Requests of users, right where the intent is the same; one that is out of scope fits nothing.

    Raises: CommandError.
    """
    path = folder / "intents.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            vectors, intents = unit_rows(archive["embeddings"]), archive["intent"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of embeddings and intents: {error}") from error
    names, answers = np.unique(intents, return_inverse=True)
    alone = np.flatnonzero(intents == OUT_OF_SCOPE)
    answers = answers.astype(np.int64)
    answers[alone] = len(names) + np.arange(len(alone))
    count = min(QUICK_REQUESTS if quick else INTENT_REQUESTS, int(MOST_SHARE * len(vectors)))
    rows = np.random.default_rng(SPLIT_SEED).permutation(len(vectors))[:count]
    return Stream(name="intents", vectors=vectors[rows], answers=answers[rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuestionPairs:
    """Labelled pairs of questions. pairs: int64 [p, 3] of row, row, label; parts: int64 [n], of the rows that
    labelled pairs link."""

    vectors: NDArray[np.float32]
    texts: list[str]
    pairs: NDArray[np.int64]
    parts: NDArray[np.int64]


def read_question_pairs(folder: Path) -> QuestionPairs:
    """Read the folder. Raises: CommandError."""
    path = folder / "question_pairs.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            vectors, pairs = unit_rows(archive["embeddings"]), archive["pairs"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of embeddings and pairs: {error}") from error
    texts = read_question_texts(path.with_suffix(".txt"), row_count=len(vectors))
    check_pairs(pairs, row_count=len(vectors))
    parts = connected_components(pairs[:, 0], pairs[:, 1], row_count=len(vectors))
    return QuestionPairs(vectors=vectors, texts=texts, pairs=pairs, parts=parts)


def question_stream(questions: QuestionPairs, verifier: Verifier | None, rows: NDArray[np.int64]) -> Stream:
    """Questions of these rows, right where they are labelled duplicates, also by way of others."""
    same = questions.pairs[questions.pairs[:, 2] == 1]
    answers = connected_components(same[:, 0], same[:, 1], row_count=len(questions.vectors))
    different = np.sort(answers[questions.pairs[questions.pairs[:, 2] == 0][:, :2]], axis=1)
    return Stream(
        name="questions",
        vectors=questions.vectors[rows],
        answers=answers[rows],
        rejected=frozenset((first, second) for first, second in different.tolist() if first != second),
        probabilities=None if verifier is None else _Judge(questions, verifier, rows),
    )


def stream_rows(questions: QuestionPairs, *, quick: bool) -> NDArray[np.int64]:
    """Rows of whole parts, about as many as a stream takes."""
    drawn = np.random.default_rng(SPLIT_SEED).permutation(np.unique(questions.parts))
    sizes = np.bincount(questions.parts)[drawn].cumsum()
    count = min(QUICK_REQUESTS if quick else QUESTION_REQUESTS, int(MOST_SHARE * len(questions.parts)))
    return np.flatnonzero(np.isin(questions.parts, drawn[: np.searchsorted(sizes, count) + 1]))


class _Judge:
    """A verifier's probabilities, each computed once."""

    def __init__(self, questions: QuestionPairs, verifier: Verifier, rows: NDArray[np.int64]) -> None:
        self._questions, self._verifier, self._rows = questions, verifier, rows
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, request: int, entries: Sequence[int]) -> list[float]:
        missing = [entry for entry in entries if (request, entry) not in self._known]
        if missing:
            rows, asked = self._rows[missing], self._rows[request]
            found = self._verifier.probabilities(
                self._questions.vectors[asked],
                self._questions.vectors[rows],
                query_text=self._questions.texts[asked],
                texts=[self._questions.texts[row] for row in rows],
            )
            self._known.update(((request, e), p) for e, p in zip(missing, found.tolist(), strict=True))
        return [self._known[request, entry] for entry in entries]
