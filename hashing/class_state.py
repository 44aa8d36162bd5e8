"""A discriminant over classes in closed form, that adds and removes rows exactly.

Its sums - second moments of the features, and their sum over each class - are additive: adding rows adds,
removing subtracts, and the solution equals training on the rows that remain (analytic continual learning,
Zhuang et al. 2022; analytic unlearning).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, Labels, check_labels, class_shares
from hashing.class_scores import ABSENT_BIAS, ClassHead, QuadraticFeatures, draw_quadratic
from hashing.config import EncoderConfig
from hashing.embeddings import CHUNK_ROWS, as_rows
from hashing.errors import TrainingDataError
from hashing.triangular import Factor, factorise

WITHIN_SHARE = 0.5
"""Share of the scatter between classes that is taken out of the metric: 0 is ridge regression on the classes,
1 linear discriminant analysis. Flat from .4 to .8 on the validation split of intents."""

LEAST_SHARE = 1 / 64
"""Less of a class is rounding, where a state does not know its entries: no row has so many labels."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassState:
    """What a discriminant label part has learned, as sums over its rows; a value: `add` and `remove` return
    a new one.

    gram: sum f f^T, float64 [D, D]. class_sums: sum of f over the rows of each class, float64 [classes, D],
    in order of issue. class_counts: rows of each class, float64 [classes]; a row with m labels counts 1/m to
    each. row_count: rows in the sums. entry_counts: rows of each class whatever their other labels, int64
    [classes]; at least so many in a state that was stored without them (`least_entry_counts`). The arrays
    hold 8 D (D + classes) bytes, 22 MB at D 1600, 150 classes.
    """

    features: QuadraticFeatures
    class_codes: ClassCodes
    ridge: float
    gram: NDArray[np.float64]
    class_sums: NDArray[np.float64]
    class_counts: NDArray[np.float64]
    row_count: int
    entry_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        assert self.entry_counts.size == self.class_counts.size, "a count per class"
        for array in (self.gram, self.class_sums, self.class_counts, self.entry_counts):
            array.setflags(write=False)

    @classmethod
    def empty(
        cls, dim: int, *, config: EncoderConfig, rows: NDArray[np.floating] | None = None
    ) -> ClassState:
        """Return the state before the first row, for embeddings of `dim` dimensions.

        rows: as `draw_quadratic` takes them. Raises: as it.
        """
        features = draw_quadratic(dim, count=config.feature_count, seed=config.seed, rows=rows)
        return cls(
            features=features,
            class_codes=ClassCodes.empty(label_bits=config.label_bits, seed=config.seed),
            ridge=float(config.ridge),
            gram=np.zeros((features.count, features.count)),
            class_sums=np.zeros((0, features.count)),
            class_counts=np.zeros(0),
            row_count=0,
        )

    def emptied(self) -> ClassState:
        """Return the state without any row, with the same features, ridge and class codes."""
        return replace(
            self,
            gram=np.zeros_like(self.gram),
            class_sums=np.zeros_like(self.class_sums),
            class_counts=np.zeros_like(self.class_counts),
            row_count=0,
            entry_counts=np.zeros_like(self.entry_counts),
        )

    def issue(self, labels: Iterable[str]) -> ClassState:
        """Return the state with class codes for the unseen among `labels`, without any row of them."""
        return self.with_codes(self.class_codes.issue(labels))

    def with_codes(self, class_codes: ClassCodes) -> ClassState:
        """Return the state with class codes that extend its own."""
        if class_codes is self.class_codes:
            return self
        fresh = len(class_codes) - len(self.class_codes)
        return replace(
            self,
            class_codes=class_codes,
            class_sums=np.concatenate([self.class_sums, np.zeros((fresh, self.features.count))]),
            class_counts=np.concatenate([self.class_counts, np.zeros(fresh)]),
            entry_counts=np.concatenate([self.entry_counts, np.zeros(fresh, dtype=np.int64)]),
        )

    def add(self, embeddings: NDArray[np.floating], labels: Labels) -> ClassState:
        """Return the state with these rows; unseen labels get class codes in order of arrival.

        embeddings: float [n, dim]. labels: one or more per row. Cost O(n D^2), in chunks of rows.
        Raises: EmbeddingsError; DimensionError; TrainingDataError for labels that do not fit.
        """
        check_labels(labels, row_count=embeddings.shape[0])
        issued = self.issue(chain.from_iterable(labels))
        return issued._moved(embeddings, labels, direction=1)

    def remove(self, embeddings: NDArray[np.floating], labels: Labels) -> ClassState:
        """Return the state as if these rows had never been added; issued class codes stay.

        The caller passes the embeddings and labels as they were added: sums cannot tell whether a row is in
        them. Scores differ from those of training on the rest by rounding, under 1e-3 of their range.
        Raises: as `add`; UnknownLabelError; TrainingDataError for more rows than the state holds.
        """
        check_labels(labels, row_count=embeddings.shape[0])
        if embeddings.shape[0] > self.row_count:
            raise TrainingDataError(
                f"cannot remove {embeddings.shape[0]} rows from a state of {self.row_count}"
            )
        return self._moved(embeddings, labels, direction=-1)

    def head(self, *, modality: str) -> ClassHead:
        """Return the label part that the sums imply.

        With class sums C, counts N and the metric A_t = gram + ridge I - t C^T N^-1 C, class y of mean m_y
        scores a row n (f A_t^-1 m_y - t/2 m_y A_t^-1 m_y): linear discriminant analysis (Fisher 1936) of a
        share t of the scatter between classes, with an even prior. Cost O(D^3 + D^2 classes).
        Raises: TrainingDataError where A_t is not positive definite, which only the removal of rows that were
        never added can cause.
        """
        present = self._present()
        counts = self.class_counts[present, None]
        if not (counts > 0).all():
            raise TrainingDataError("rows were removed that had never been added")
        sums = self.class_sums[present]
        means = (sums / counts).astype(np.float32)  # [present, D]
        factor = self._factor(sums / np.sqrt(counts))
        half = factor.forward(np.ascontiguousarray(means.T))  # [D, present]
        weight = np.zeros((self.features.count, len(self.class_codes)), dtype=np.float32)
        weight[:, present] = self.row_count * factor.backward(half)
        bias = np.full(len(self.class_codes), ABSENT_BIAS)
        bias[present] = -WITHIN_SHARE / 2 * self.row_count * np.einsum("dc,dc->c", half, half)
        return ClassHead(
            features=self.features,
            class_weight=weight,
            class_bias=bias,
            class_codes=self.class_codes,
            modality=modality,
        )

    def _factor(self, spread: NDArray[np.float64]) -> Factor:
        """Factorise A_t. spread: float64 [present, D], N^-1/2 C. Raises: TrainingDataError."""
        part = np.sqrt(WITHIN_SHARE) * spread
        dtypes: tuple[type[np.floating[Any]], ...] = (np.float32, np.float64)
        for dtype in dtypes:  # the digits of float32 may not reach from many rows down to the ridge
            narrow = part.astype(dtype)
            metric = self.gram.astype(dtype) - narrow.T @ narrow
            metric.flat[:: self.features.count + 1] += dtype(self.ridge)
            try:
                return factorise(metric)
            except np.linalg.LinAlgError:
                continue
        raise TrainingDataError("rows were removed that had never been added")

    def _present(self) -> NDArray[np.intp]:
        """Return the classes that have rows, ascending."""
        return np.flatnonzero((self.entry_counts > 0) | (self.class_counts > LEAST_SHARE))

    def _moved(self, embeddings: NDArray[np.floating], labels: Labels, *, direction: int) -> ClassState:
        gram = self.gram
        class_sums = self.class_sums.copy()
        class_counts, entry_counts = self.class_counts.copy(), self.entry_counts.copy()
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            rows = as_rows(embeddings[start : start + CHUNK_ROWS], dim=self.features.dim)
            shares = class_shares(self.class_codes, labels[start : start + CHUNK_ROWS])
            # A row in several classes is as many rows, each by its share: the products are the same.
            roots = np.sqrt(shares.weights).astype(np.float32)
            features = self.features.transform(rows[shares.rows])
            several = shares.rows.size > rows.shape[0]
            if several:
                features *= roots[:, None]
            # Products in float32 within a chunk, sums over chunks in float64; of a matrix and itself numpy
            # computes one half.
            product = features.T @ features
            gram = gram + product if direction > 0 else gram - product
            class_sums[shares.classes] += direction * shares.sums(
                features * roots[:, None] if several else features
            )
            class_counts[shares.classes] += direction * shares.share_sums()
            entry_counts[shares.classes] += direction * shares.entry_counts()
        return replace(
            self,
            gram=gram,
            class_sums=class_sums,
            class_counts=class_counts,
            row_count=self.row_count + direction * embeddings.shape[0],
            entry_counts=entry_counts,
        )


def least_entry_counts(class_counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the fewest rows that make up these shares of classes, int64 [classes].

    class_counts: float64 [classes]. Exact where every row has one label; of rows with several there may be
    more, so a class has rows while it has entries or a share of LEAST_SHARE.
    """
    return np.ceil(class_counts - LEAST_SHARE).astype(np.int64)
