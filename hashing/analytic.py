"""Label codes in closed form: random features, and a ridge regression that can add and subtract rows.

Adding rows adds to two sums, removing subtracts: the solution equals training on the rows that remain
(analytic continual learning, Zhuang et al. 2022; analytic unlearning).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, Labels, check_labels, target_bits
from hashing.config import EncoderConfig
from hashing.embeddings import CHUNK_ROWS, as_rows
from hashing.errors import TrainingDataError

SOLVE_BLOCK = 128
"""Rows that the triangular solve eliminates at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class RandomFeatures:
    """Random Fourier features of a Gaussian kernel (Rahimi & Recht 2007).

    omega: float32 [dim, D]. beta: float32 [D], phases in radians.
    """

    omega: NDArray[np.float32]
    beta: NDArray[np.float32]

    def __post_init__(self) -> None:
        self.omega.setflags(write=False)
        self.beta.setflags(write=False)

    @property
    def dim(self) -> int:
        return int(self.omega.shape[0])

    @property
    def count(self) -> int:
        return int(self.omega.shape[1])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by name."""
        return {"omega": self.omega, "beta": self.beta}

    def transform(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to sqrt(2/D) cos(x omega + beta), float32 [n, D]."""
        features = embeddings @ self.omega
        features += self.beta
        np.cos(features, out=features)
        features *= np.float32(np.sqrt(2 / self.count))
        return features


def draw_features(dim: int, *, count: int, gamma: float, seed: int) -> RandomFeatures:
    """Draw `count` features: omega ~ N(0, gamma^2), beta ~ U[0, 2 pi)."""
    rng = np.random.default_rng(seed)
    omega = rng.standard_normal((dim, count), dtype=np.float32) * np.float32(gamma)
    beta = rng.uniform(0, 2 * np.pi, size=count).astype(np.float32)
    return RandomFeatures(omega=omega, beta=beta)


@dataclass(frozen=True, slots=True, eq=False)
class LabelHead:
    """The label part of an encoder: label values are `features.transform(x) @ weight`.

    weight: float32 [D, label_bits]. modality: whose embeddings it reads.
    """

    features: RandomFeatures
    weight: NDArray[np.float32]
    class_codes: ClassCodes
    modality: str

    def __post_init__(self) -> None:
        self.weight.setflags(write=False)

    def values(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to real-valued label queries, float32 [n, label_bits]; in chunks."""
        values = np.empty((embeddings.shape[0], self.weight.shape[1]), dtype=np.float32)
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            chunk = embeddings[start : start + CHUNK_ROWS]
            np.matmul(self.features.transform(chunk), self.weight, out=values[start : start + CHUNK_ROWS])
        return values


@dataclass(frozen=True, slots=True, eq=False)
class LabelState:
    """What a label part has learned, as sums over its rows; a value: `add` and `remove` return a new one.

    gram: A - ridge I = sum f f^T, float64 [D, D]. cross: C = sum f c^T, float64 [D, label_bits].
    row_count: rows in the sums. The arrays hold 8 D (D + label_bits) bytes: 35 MB at D 2048.
    """

    features: RandomFeatures
    class_codes: ClassCodes
    ridge: float
    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    row_count: int

    def __post_init__(self) -> None:
        self.gram.setflags(write=False)
        self.cross.setflags(write=False)

    @classmethod
    def empty(cls, dim: int, *, config: EncoderConfig) -> LabelState:
        """Return the state before the first row, for embeddings of `dim` dimensions."""
        count = config.feature_count
        return cls(
            features=draw_features(dim, count=count, gamma=config.gamma, seed=config.seed),
            class_codes=ClassCodes.empty(label_bits=config.label_bits, seed=config.seed),
            ridge=float(config.ridge),
            gram=np.zeros((count, count)),
            cross=np.zeros((count, config.label_bits)),
            row_count=0,
        )

    def emptied(self) -> LabelState:
        """Return the state without any row, with the same features, ridge and class codes."""
        return replace(self, gram=np.zeros_like(self.gram), cross=np.zeros_like(self.cross), row_count=0)

    def issue(self, labels: Iterable[str]) -> LabelState:
        """Return the state with class codes for the unseen among `labels`, without any row of them."""
        return replace(self, class_codes=self.class_codes.issue(labels))

    def add(self, embeddings: NDArray[np.floating], labels: Labels) -> LabelState:
        """Return the state with these rows; unseen labels get class codes in order of arrival.

        embeddings: float [n, dim]. labels: one or more per row. Cost O(n D^2), in chunks of rows.
        Raises: EmbeddingsError; DimensionError; TrainingDataError for labels that do not fit.
        """
        check_labels(labels, row_count=embeddings.shape[0])
        issued = self.issue(chain.from_iterable(labels))
        return issued._moved(embeddings, labels, direction=1)

    def remove(self, embeddings: NDArray[np.floating], labels: Labels) -> LabelState:
        """Return the state as if these rows had never been added; issued class codes stay.

        The caller passes the embeddings and labels as they were added: sums cannot tell whether a row
        is in them.
        Raises: as `add`; UnknownLabelError; TrainingDataError for more rows than the state holds.
        """
        check_labels(labels, row_count=embeddings.shape[0])
        if embeddings.shape[0] > self.row_count:
            raise TrainingDataError(
                f"cannot remove {embeddings.shape[0]} rows from a state of {self.row_count}"
            )
        return self._moved(embeddings, labels, direction=-1)

    def with_codes(self, class_codes: ClassCodes) -> LabelState:
        """Return the state with class codes that extend its own."""
        return replace(self, class_codes=class_codes)

    def head(self, *, modality: str) -> LabelHead:
        """Return the label part that the sums imply. Raises: as `solve`."""
        return LabelHead(
            features=self.features, weight=self.solve(), class_codes=self.class_codes, modality=modality
        )

    def solve(self) -> NDArray[np.float32]:
        """Return W = A^-1 C, float32 [D, label_bits], by Cholesky in float64.

        Raises: TrainingDataError where A is not positive definite, which only the removal of rows
        that were never added can cause.
        """
        regularised = self.gram + self.ridge * np.eye(self.features.count)
        try:
            lower = np.linalg.cholesky(regularised).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            raise TrainingDataError("rows were removed that had never been added") from None
        return solve_cholesky(lower, self.cross).astype(np.float32)

    def _moved(self, embeddings: NDArray[np.floating], labels: Labels, *, direction: int) -> LabelState:
        gram = self.gram.copy()
        cross = self.cross.copy()
        for chunk, targets in self._chunks(embeddings, labels):
            # float64: float32 sums would be off by about the ridge once some ten thousand rows are in.
            features = self.features.transform(chunk).astype(np.float64)
            gram += direction * (features.T @ features)
            cross += direction * (features.T @ targets)
        return replace(
            self, gram=gram, cross=cross, row_count=self.row_count + direction * embeddings.shape[0]
        )

    def _chunks(
        self, embeddings: NDArray[np.floating], labels: Labels
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
        """Yield rows float32 [m, dim] with their -1/+1 targets float64 [m, label_bits]."""
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            chunk = as_rows(embeddings[start : start + CHUNK_ROWS], dim=self.features.dim)
            bits = target_bits(self.class_codes, labels[start : start + CHUNK_ROWS])
            yield chunk, np.where(bits, 1.0, -1.0)


def solve_cholesky(lower: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve L L^T X = right for a lower triangular L [D, D], block by block; float64 [D, k].

    numpy has no triangular solve, and its general one costs as much again as the factorisation.
    """
    solution = right.copy()
    size = lower.shape[0]
    for start in range(0, size, SOLVE_BLOCK):  # L Y = right
        block = slice(start, start + SOLVE_BLOCK)
        solution[block] -= lower[block, :start] @ solution[:start]
        solution[block] = np.linalg.solve(lower[block, block], solution[block])
    for start in reversed(range(0, size, SOLVE_BLOCK)):  # L^T X = Y
        block = slice(start, start + SOLVE_BLOCK)
        solution[block] -= lower[start + SOLVE_BLOCK :, block].T @ solution[start + SOLVE_BLOCK :]
        solution[block] = np.linalg.solve(lower[block, block].T, solution[block])
    return solution
