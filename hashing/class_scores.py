"""The discriminant label part as it serves: quadratic features, class scores, and a query that ranks them.

A linear map to label values scores a class by its code, and 150 codes of 64 bits are not orthogonal: the
scores of all other classes leak into it, which cost 0.012 of mAP on intents. Here classes are scored apart,
and the query is made of the codes of the best few, weighted by their order. It ranks the code of the best
class first; how it ranks the others is approximate, as their codes are not orthogonal either.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes
from hashing.embeddings import CHUNK_ROWS, as_rows, sample_rows, signs

RANKED_CLASSES = 8
"""Best classes whose codes make a query."""

RANK_DECAY = 0.5
"""Weight of a class in the query, of that of the next better one. Beyond .5 the codes of the worse classes
together outweigh their order: .7 cost 0.009 of mAP on the validation split of intents."""

SORTED_CLASSES = 512
"""Classes up to which sorting all of them takes less time than finding the best first."""

SPREAD_LEAST_ROWS = 1000
"""Fewer rows would show themselves in directions that follow them."""

SPREAD_ROWS_LIMIT = 20_000

LEAST_SPREAD = 1e-9
"""Of the squares of all rows, what their centring leaves of equal ones."""

EVEN_SHARE = 0.3
"""Even part of the covariance that directions follow, of its trace; .1 to 3 differ by .001 of mAP."""

ABSENT_BIAS = np.float32(-1e9)
"""Bias of a class without rows, so that every class with rows scores higher."""


@dataclass(frozen=True, slots=True, eq=False)
class QuadraticFeatures:
    """The embedding itself and squares of its projections: f(x) = [x, (x directions)^2 - offset].

    A quadratic kernel, of which the linear part is exact and the rest random (Kar & Karnick 2012). On intents
    1216 squares and 384 linear features rank a little better than 2048 cosines do, with fewer columns.

    directions: float32 [dim, count]. offset: float32 [count].
    """

    directions: NDArray[np.float32]
    offset: NDArray[np.float32]

    def __post_init__(self) -> None:
        self.directions.setflags(write=False)
        self.offset.setflags(write=False)

    @property
    def dim(self) -> int:
        return int(self.directions.shape[0])

    @property
    def count(self) -> int:
        """Linear and quadratic features together (D)."""
        return int(self.directions.shape[0] + self.directions.shape[1])

    def transform(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to float32 [n, D]."""
        features = np.empty((embeddings.shape[0], self.count), dtype=np.float32)
        features[:, : self.dim] = embeddings
        squares = features[:, self.dim :]
        np.matmul(embeddings, self.directions, out=squares)
        np.square(squares, out=squares)
        squares -= self.offset
        return features

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by name."""
        return {"directions": self.directions, "offset": self.offset}


def draw_quadratic(
    dim: int, *, count: int, seed: int, rows: NDArray[np.floating] | None = None
) -> QuadraticFeatures:
    """Draw `count` directions, and scale the squares to norm 1 on even unit rows.

    rows: float [n, dim], of the embedder that will be read, labelled or not. Embeddings vary in few
    directions: from SPREAD_LEAST_ROWS on, of which SPREAD_ROWS_LIMIT are read, directions follow their
    covariance, which was worth 0.003 of mAP on the validation split of intents and 0.008 of accuracy on
    Fashion-MNIST; otherwise they are even. It is a property of the embedder: 500 rows of one domain serve as
    well as all of ten.

    Directions that follow rows tell of them, also of those that are forgotten later. So their draw has a
    secret that is kept nowhere: it cannot be repeated, and shows the covariance only up to the error of a
    sample of `count`.
    Raises: EmbeddingsError; DimensionError.
    """
    rng, spread = np.random.default_rng(seed), None
    if rows is not None and len(rows) >= SPREAD_LEAST_ROWS:
        read = as_rows(sample_rows(rows, limit=SPREAD_ROWS_LIMIT, rng=np.random.default_rng(seed)), dim=dim)
        rng, spread = np.random.default_rng(secrets.randbits(256)), _spread(read)
    directions = rng.standard_normal((dim, count), dtype=np.float32)
    if spread is not None:
        directions = spread @ directions
    directions /= np.linalg.norm(directions, axis=0)
    scale = dim / np.sqrt(2 * count)  # of an even unit row squares vary by 2 / dim^2
    return QuadraticFeatures(
        directions=directions * np.float32(np.sqrt(scale)),
        offset=np.full(count, scale / dim, dtype=np.float32),
    )


def _spread(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a root of the rows' covariance, of trace 1 and with EVEN_SHARE of an even one, [dim, dim].

    Rows that are all equal, but for rounding, give the even one alone.
    """
    dim = rows.shape[1]
    centred = rows - rows.mean(axis=0)
    covariance = (centred.T @ centred).astype(np.float64)
    total = float(np.trace(covariance))
    covariance /= total if total > LEAST_SPREAD * float(np.vdot(rows, rows)) else np.inf
    covariance.flat[:: dim + 1] += EVEN_SHARE / dim
    return np.linalg.cholesky(covariance).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ClassHead:
    """The label part of an encoder: scores of classes, and queries that rank the best class's code first.

    class_weight: float32 [D, classes]. class_bias: float32 [classes]. modality: whose embeddings it reads.
    """

    features: QuadraticFeatures
    class_weight: NDArray[np.float32]
    class_bias: NDArray[np.float32]
    class_codes: ClassCodes
    modality: str
    _signs: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.class_weight.shape[1] == self.class_bias.size == len(self.class_codes), (
            "a score per class"
        )
        self.class_weight.setflags(write=False)
        self.class_bias.setflags(write=False)
        object.__setattr__(self, "_signs", signs(self.class_codes.bits))

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to discriminant scores, float32 [n, classes] in order of issue."""
        scores: NDArray[np.float32] = self.features.transform(embeddings) @ self.class_weight
        scores += self.class_bias
        return scores

    def values(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to real-valued label queries, float32 [n, label_bits]; in chunks.

        A query is the sum of the best RANKED_CLASSES codes in -1/+1, each weighted RANK_DECAY of the better
        one. The code of the best class ranks first. The others need not follow in the order of their scores:
        codes are not orthogonal, and the complement of a good class's code ranks low whatever its own score.
        It says nothing of how sure the scores are.
        """
        values = np.zeros((embeddings.shape[0], self.class_codes.label_bits), dtype=np.float32)
        ranked = min(RANKED_CLASSES, len(self.class_codes))
        if not ranked:
            return values
        weights = np.float32(RANK_DECAY) ** np.arange(ranked, dtype=np.float32)
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            scores = self.scores(embeddings[start : start + CHUNK_ROWS])
            best = _best_columns(scores, count=ranked)
            np.matmul(weights, self._signs[best], out=values[start : start + CHUNK_ROWS])
        return values


def _best_columns(scores: NDArray[np.float32], *, count: int) -> NDArray[np.intp]:
    """Return the `count` columns of highest score in each row, best first, [n, count]."""
    if scores.shape[1] <= SORTED_CLASSES:
        return np.argsort(-scores, axis=1)[:, :count]
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)
