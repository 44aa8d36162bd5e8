"""Class codes: one fixed code per label, issued in order of arrival and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hashing.config import WORD_BITS
from hashing.embeddings import signs
from hashing.errors import TrainingDataError, UnknownLabelError

RANDOM_POOL_WORDS = 64
"""Candidates drawn for a word once the Kerdock code is used up."""

Labels = Sequence[Sequence[str]]
"""The labels of each row; a row may have none, one or several."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassCodes:
    """An ordered mapping from label to class code.

    labels: in order of issue. bits: bool [len(labels), label_bits]. seed: of the draw.

    Every 64-bit word of the codes is drawn on its own from the Kerdock code of length 64 (Hammons et
    al. 1994), so codes keep apart in every prefix of p bits: by p/2 among the first 128 labels, by
    28/64 p among the first 4096. Plain Sylvester-Hadamard rows would collide in their prefixes. Labels
    beyond 4096 get the best of RANDOM_POOL_WORDS random words, distinct but closer.
    """

    labels: tuple[str, ...]
    bits: NDArray[np.bool_]
    seed: int
    _positions: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positions = {label: position for position, label in enumerate(self.labels)}
        assert len(positions) == self.bits.shape[0], "one row of bits per distinct label"
        object.__setattr__(self, "_positions", positions)
        self.bits.setflags(write=False)

    @classmethod
    def empty(cls, *, label_bits: int, seed: int) -> ClassCodes:
        """Return a mapping without labels; `label_bits` is a multiple of 64."""
        return cls(labels=(), bits=np.zeros((0, label_bits), dtype=np.bool_), seed=seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label: object) -> bool:
        return label in self._positions

    @property
    def label_bits(self) -> int:
        return int(self.bits.shape[1])

    def position(self, label: str) -> int:
        """Return the row of `bits` that `label` owns. Raises: UnknownLabelError."""
        try:
            return self._positions[label]
        except KeyError:
            raise UnknownLabelError(label, known_count=len(self.labels)) from None

    def issue(self, labels: Iterable[str]) -> ClassCodes:
        """Return the mapping with a code for every label in `labels` that has none; old codes stay.

        The result depends on the seed and the order of arrival only, not on how it is batched.
        """
        unseen = tuple(label for label in dict.fromkeys(labels) if label not in self._positions)
        if not unseen:
            return self
        words = [
            _issue_words(
                self.bits[:, start : start + WORD_BITS],
                count=len(unseen),
                seed=(self.seed, start // WORD_BITS),
            )
            for start in range(0, self.label_bits, WORD_BITS)
        ]
        bits = np.concatenate([self.bits, np.concatenate(words, axis=1)])
        return ClassCodes(labels=self.labels + unseen, bits=bits, seed=self.seed)


def issue_orthogonal(labels: Iterable[str], *, label_bits: int, seed: int) -> ClassCodes:
    """Issue codes that are orthogonal in every word as long as there are at most 64 labels.

    `ClassCodes.issue` seeks distance and so issues complements early: of two classes with complementary codes
    a real-valued query can only say how much more likely one is than the other. With orthogonal codes its
    score of a code is a score of the class alone. Words are rows of a Hadamard matrix of order 64 (Sylvester
    1867), columns permuted and signed, rows in an order of their own. Labels beyond 64, and later ones, get
    codes as `ClassCodes.issue` gives them.
    """
    distinct = list(dict.fromkeys(labels))
    first = distinct[:WORD_BITS]
    words = []
    for word in range(label_bits // WORD_BITS):
        rng = np.random.default_rng((seed, word))
        rows = rng.permutation(WORD_BITS)[: len(first)]
        parities = np.bitwise_count(rows[:, None] & rng.permutation(WORD_BITS)) % 2  # [labels, 64]
        words.append((parities == 1) ^ (rng.random(WORD_BITS) < 0.5))
    codes = ClassCodes(labels=tuple(first), bits=np.concatenate(words, axis=1), seed=seed)
    return codes.issue(distinct)


def target_bits(class_codes: ClassCodes, labels: Labels) -> NDArray[np.bool_]:
    """Return the label code of each row, bool [n, label_bits].

    A row with several labels gets the sign of the sum of its class codes in -1/+1; a tie takes the
    bit of the row's first label. A label repeated in one row counts once.
    Raises: TrainingDataError for a row without a label; UnknownLabelError.
    """
    row_labels = _distinct(labels)
    counts = np.array([len(own) for own in row_labels], dtype=np.intp)
    positions = np.array([class_codes.position(label) for label in chain(*row_labels)], dtype=np.intp)
    starts = np.cumsum(counts) - counts  # [n], the first label of each row in `positions`
    first: NDArray[np.bool_] = class_codes.bits[positions[starts]]
    if positions.size == counts.size:
        return first
    signs = class_codes.bits.astype(np.int16) * 2 - 1
    sums = np.add.reduceat(signs[positions], starts, axis=0)  # [n, label_bits]
    return np.where(sums == 0, first, sums > 0)


@dataclass(frozen=True, slots=True, eq=False)
class ClassShares:
    """How rows divide between classes: a row with m labels belongs to each of them by 1/m.

    An entry is a row in a class; entries are sorted by class. rows: int [entries]. weights: float64
    [entries], of a row they sum to 1. classes: those that occur, int [c], ascending. starts: their first
    entries, int [c].
    """

    rows: NDArray[np.intp]
    weights: NDArray[np.float64]
    classes: NDArray[np.intp]
    starts: NDArray[np.intp]

    def sums(self, entries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sum over each class of float32 [entries, D], float32 [c, D]."""
        sums = np.zeros((self.classes.size, entries.shape[1]), dtype=np.float32)
        stops = np.append(self.starts[1:], self.rows.size)
        for own, start, stop in zip(sums, self.starts, stops, strict=True):  # reduceat is far slower
            np.sum(entries[start:stop], axis=0, out=own)
        return sums

    def share_sums(self) -> NDArray[np.float64]:
        """Return the sum of the weights of each class, float64 [c]."""
        sums: NDArray[np.float64] = np.add.reduceat(self.weights, self.starts)
        return sums

    def entry_counts(self) -> NDArray[np.int64]:
        """Return the entries of each class, int64 [c]."""
        return np.diff(self.starts, append=self.rows.size).astype(np.int64)


def class_shares(class_codes: ClassCodes, labels: Labels) -> ClassShares:
    """Divide rows between their labels; a label repeated in one row counts once.

    Raises: TrainingDataError for a row without a label; UnknownLabelError.
    """
    row_labels = _distinct(labels)
    counts = np.array([len(own) for own in row_labels], dtype=np.intp)
    positions = np.array([class_codes.position(label) for label in chain(*row_labels)], dtype=np.intp)
    order = np.argsort(positions, kind="stable")
    classes, starts = np.unique(positions[order], return_index=True)
    return ClassShares(
        rows=np.repeat(np.arange(len(row_labels)), counts)[order],
        weights=np.repeat(1 / counts, counts)[order],
        classes=classes,
        starts=starts,
    )


def check_labels(labels: Labels, *, row_count: int) -> None:
    """Refuse labels that do not describe `row_count` rows.

    Raises: TrainingDataError for another length, a row that is a plain string, or a label that is
    not a non-empty string.
    """
    if len(labels) != row_count:
        raise TrainingDataError(f"{len(labels)} label rows for {row_count} embeddings")
    for row, own in enumerate(labels):
        if isinstance(own, str):
            raise TrainingDataError(f"row {row} must be a sequence of labels, got the string {own!r}")
        for label in own:
            if not isinstance(label, str) or not label:
                raise TrainingDataError(f"row {row} has the label {label!r}, not a non-empty string")


def _distinct(labels: Labels) -> list[tuple[str, ...]]:
    """Return each row's labels once. Raises: TrainingDataError for a row without a label."""
    row_labels = [tuple(dict.fromkeys(row)) for row in labels]
    for row, own in enumerate(row_labels):
        if not own:
            raise TrainingDataError(f"row {row} has no label")
    return row_labels


def _issue_words(earlier: NDArray[np.bool_], *, count: int, seed: tuple[int, int]) -> NDArray[np.bool_]:
    """Choose `count` words far from the earlier ones and from each other, bool [count, 64].

    Greedy maximum of the minimum distance over the Kerdock words in a seeded order, then over random
    words. Distances to `earlier` are measured, not assumed, so that another order of the pool (a
    later numpy may permute differently) cannot issue a word twice.
    """
    pool = signs(np.random.default_rng(seed).permutation(_kerdock_words()))  # [4096, 64]
    chosen = np.empty((earlier.shape[0] + count, WORD_BITS), dtype=np.float32)
    chosen[: earlier.shape[0]] = signs(earlier)
    packed = np.empty(chosen.shape[0], dtype=np.uint64)
    packed[: earlier.shape[0]] = _packed(earlier)
    nearest = np.zeros(pool.shape[0], dtype=np.float32)
    if not np.isin(_packed(pool > 0), packed[: earlier.shape[0]]).all():  # else the pool is used up
        nearest[:] = np.inf
        for word in chosen[: earlier.shape[0]]:
            np.minimum(nearest, _distances(pool, word), out=nearest)
    for index in range(earlier.shape[0], chosen.shape[0]):
        best = int(np.argmax(nearest))
        if nearest[best] > 0:
            chosen[index] = pool[best]
            np.minimum(nearest, _distances(pool, pool[best]), out=nearest)
        else:
            chosen[index] = _random_word(packed[:index], rng=np.random.default_rng((*seed, index)))
        packed[index] = _packed(chosen[index : index + 1] > 0)[0]
    return chosen[earlier.shape[0] :] > 0


def _random_word(earlier: NDArray[np.uint64], *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the random word that is farthest from its nearest earlier one, -1/+1 float32 [64]."""
    pool = rng.random((RANDOM_POOL_WORDS, WORD_BITS)) < 0.5
    closest = np.array([np.bitwise_count(word ^ earlier).min() for word in _packed(pool)])
    return signs(pool[int(np.argmax(closest))])


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Words bool [n, 64] as uint64 [n], for distances among them only: the order of bits is nobody's."""
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _kerdock_words() -> NDArray[np.bool_]:
    """Return the 4096 words of the Kerdock code of length 64, minimum distance 28, bool [4096, 64].

    Gray image of the quaternary code of the sequences s[t+5] = s[t+2] + 2 s[t+1] + s[t] mod 4 (the
    Hensel lift of x^5 + x^2 + 1), extended by a zero and shifted by each constant. Hammons, Kumar,
    Calderbank, Sloane & Sole, IEEE Trans. Information Theory 40 (1994).
    """
    sequences = np.zeros((4**5, 32), dtype=np.int64)
    sequences[:, 1:6] = np.indices((4,) * 5).reshape(5, -1).T
    for t in range(6, 32):
        sequences[:, t] = (sequences[:, t - 3] + 2 * sequences[:, t - 4] + sequences[:, t - 5]) % 4
    quaternary = (sequences[:, None, :] + np.arange(4)[:, None]) % 4  # [1024, 4, 32]
    gray = np.stack([quaternary >= 2, (quaternary == 1) | (quaternary == 2)], axis=-1)  # [1024, 4, 32, 2]
    return gray.reshape(4**6, WORD_BITS)


def _distances(pool: NDArray[np.float32], word: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Hamming distances in bits of -1/+1 words [n, 64] to one word [64], float32 [n]."""
    return ((WORD_BITS - pool @ word) / 2).astype(np.float32)
