"""A verifier: with what probability two texts may share an answer, where their distance cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import as_rows
from hashing.errors import CheckpointError, EmbeddingsError
from hashing.evidence_network import EvidenceNetwork
from hashing.identity import Tensors, content_hash
from hashing.pair_features import FEATURE_NAMES, pair_features
from hashing.score_calibration import LEAST_PROBABILITY, ScoreCalibration
from hashing.sealed_tensors import (
    field_of,
    matrix_of,
    read_document,
    seal_tensors,
    tensor_of,
    unseal_tensors,
)
from hashing.word_table import EVIDENCE_COLUMNS, PreparedText, WordTable

VERIFIER_FORMAT = "nearhit-verifier"
VERIFIER_VERSION = 1

PREPARED_LIMIT = 4096
"""Texts that a verifier keeps prepared, the least recently used go first; 3 to 6 KB each."""

LEAST_SQUARE = np.float32(1e-24)
"""Of a product of lengths that is divided by: rows that the metric maps to 0 have cosine 0."""

EMBEDDING_FEATURES = 2
TEXT_FEATURES_BEFORE = 3
"""Of the text part, in front of what `pair_features` gives: the embedding part's two, the words' evidence."""


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """A network and the calibration of its score."""

    network: EvidenceNetwork
    calibration: ScoreCalibration

    def probability(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Map features, float32 [n, features], to P(same), float64 [n]."""
        return self.calibration.probability(self.network.score(features))

    def arrays(self) -> Tensors:
        """Return what makes the judge the one it is, by name."""
        return {
            **{f"network.{name}": array for name, array in self.network.arrays().items()},
            "calibration.scores": self.calibration.scores,
            "calibration.probabilities": self.calibration.probabilities,
        }


@dataclass(frozen=True, slots=True, eq=False)
class TextPart:
    """What judges pairs whose texts are both known: words, and a judge of all that is compared."""

    words: WordTable
    judge: Judge


@dataclass(frozen=True, slots=True, eq=False)
class Verifier:
    """An immutable trained verifier; safe to share between threads.

    metric: float32 [dim, k], maps embeddings to where cosines were learned. embedding_judge: of the two
    cosines. text_part: None where it was trained without texts. metrics: figures of its training, no part of
    its identity. verifier_id: hash of everything else, 32 hex characters.
    """

    metric: NDArray[np.float32]
    embedding_judge: Judge
    text_part: TextPart | None
    metrics: Mapping[str, float]
    verifier_id: str = field(init=False)
    _prepare: Callable[[str], PreparedText | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.metric.setflags(write=False)
        object.__setattr__(self, "verifier_id", content_hash(self.tensors(), self.identity_metadata()))
        prepare = self.text_part.words.prepare if self.text_part is not None else _unread
        object.__setattr__(self, "_prepare", lru_cache(maxsize=PREPARED_LIMIT)(prepare))

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.metric.shape[0])

    def probabilities(
        self,
        query: NDArray[np.float32],
        rows: NDArray[np.float32],
        *,
        query_text: str = "",
        texts: Sequence[str] = (),
    ) -> NDArray[np.float64]:
        """Return the calibrated probability that the query and each row may share an answer, float64 [n].

        query: float32 [dim], unit. rows: float32 [n, dim], unit. texts: of each row, "" where unknown; () for
        none. Where the text of the query or a row is unknown, or without words, their embeddings alone are
        judged, with a calibration of their own. What is said of a row depends on no other row.
        Raises: DimensionError for another width; EmbeddingsError for values that are not finite, a query that
        is not a vector, or texts of another length than the rows.
        """
        if np.ndim(query) != 1:
            raise EmbeddingsError(f"the query must be a vector [dim], got {np.ndim(query)} axes")
        unit_query = as_rows(np.asarray(query)[None], dim=self.dim)
        unit = as_rows(rows, dim=self.dim)
        if len(texts) not in (0, unit.shape[0]):
            raise EmbeddingsError(f"got {len(texts)} texts for {unit.shape[0]} rows")
        cosines = pair_cosines(self.metric, unit_query, unit)
        prepared_query = self._prepare(query_text) if query_text and len(texts) else None
        if prepared_query is None:
            return self.embedding_judge.probability(cosines)
        prepared = [self._prepare(text) if text else None for text in texts]
        known = [row for row, text in enumerate(prepared) if text is not None]
        if not known:
            return self.embedding_judge.probability(cosines)
        assert self.text_part is not None, "without it no text is prepared"
        features = text_features(
            cosines[known], prepared_query, [text for text in prepared if text is not None]
        )
        judged = self.text_part.judge.probability(features)
        if len(known) == unit.shape[0]:
            return judged
        result = self.embedding_judge.probability(cosines)
        result[known] = judged
        return result

    def tensors(self) -> Tensors:
        """Return every array by name."""
        tensors: Tensors = {"metric": self.metric}
        tensors |= {f"embedding.{name}": array for name, array in self.embedding_judge.arrays().items()}
        if self.text_part is not None:
            words = self.text_part.words
            tensors |= {f"text.{name}": array for name, array in self.text_part.judge.arrays().items()}
            tensors |= {
                "words.rarity": words.rarity,
                "words.meaning": words.meaning,
                "words.evidence": words.evidence,
            }
        return tensors

    def identity_metadata(self) -> dict[str, object]:
        """Return what makes the verifier the one it is beside its arrays."""
        return {"words": None if self.text_part is None else list(self.text_part.words.words)}


def pair_cosines(
    metric: NDArray[np.float32], query: NDArray[np.float32], rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the cosine of the query and each row as they are, and under the learned metric, float32 [n, 2].

    query: float32 [1, dim] or [n, dim], a query a row. rows: float32 [n, dim]. Both unit.
    """
    cosines = np.empty((rows.shape[0], EMBEDDING_FEATURES), dtype=np.float32)
    cosines[:, 0] = np.einsum("nd,nd->n", rows, np.broadcast_to(query, rows.shape))
    mapped, mapped_query = rows @ metric, query @ metric  # [n, k]; [1, k] or [n, k]
    products = np.einsum("nk,nk->n", mapped, np.broadcast_to(mapped_query, mapped.shape))
    squares = np.einsum("nk,nk->n", mapped, mapped) * np.einsum("nk,nk->n", mapped_query, mapped_query)
    cosines[:, 1] = products / np.sqrt(np.maximum(squares, LEAST_SQUARE))
    return cosines


def text_features(
    cosines: NDArray[np.float32], query: PreparedText, rows: Sequence[PreparedText]
) -> NDArray[np.float32]:
    """Return what the text part's judge reads, float32 [n, TEXT_FEATURES_BEFORE + len(FEATURE_NAMES)]."""
    compared, evidence = pair_features(query, rows)
    return np.concatenate([cosines, evidence[:, None], compared], axis=1)


def dump_verifier(verifier: Verifier) -> bytes:
    """Serialise a verifier; `load_verifier` gives it back with the same verifier_id."""
    metadata: dict[str, object] = {
        "verifier_id": verifier.verifier_id,
        "features": list(FEATURE_NAMES),
        "identity": verifier.identity_metadata(),
        "metrics": dict(verifier.metrics),
    }
    return seal_tensors(VERIFIER_FORMAT, verifier.tensors(), metadata, version=VERIFIER_VERSION)


def load_verifier(content: bytes) -> Verifier:
    """Read what `dump_verifier` wrote.

    Raises: CheckpointError that names what is wrong with truncated, foreign, altered or inconsistent
    bytes, with a format version that this program does not know, or with features that it does not compare.
    """
    document = read_document(VERIFIER_FORMAT, content)
    version = document.get("format_version")
    if version != VERIFIER_VERSION:
        raise CheckpointError(f"format version {version!r} is unknown, expected {VERIFIER_VERSION}")
    tensors = unseal_tensors(content, document=document)
    words = field_of(document, "identity", dict).get("words")
    text_part = None
    if words is not None:
        if document.get("features") != list(FEATURE_NAMES):
            raise CheckpointError("it compares other features of texts than this program: train it again")
        judge = _judge(tensors, "text", feature_count=TEXT_FEATURES_BEFORE + len(FEATURE_NAMES))
        text_part = TextPart(words=_words(tensors, words), judge=judge)
    verifier = Verifier(
        metric=matrix_of(tensors, "metric"),
        embedding_judge=_judge(tensors, "embedding", feature_count=EMBEDDING_FEATURES),
        text_part=text_part,
        metrics=field_of(document, "metrics", dict),
    )
    if verifier.verifier_id != document.get("verifier_id"):
        raise CheckpointError(
            f"content is verifier {verifier.verifier_id}, not {document.get('verifier_id')}"
        )
    return verifier


def _judge(tensors: Tensors, part: str, *, feature_count: int) -> Judge:
    hidden = matrix_of(tensors, f"{part}.network.hidden")
    units, width = hidden.shape
    column = tensor_of(tensors, f"{part}.network.column", np.int32, (units,))
    if units and not (column.min() >= 0 and column.max() < feature_count):
        raise CheckpointError(f"the network of the {part} part reads features that there are not")
    network = EvidenceNetwork(
        column=column,
        low=tensor_of(tensors, f"{part}.network.low", np.float32, (units,)),
        scale=tensor_of(tensors, f"{part}.network.scale", np.float32, (units,)),
        hidden=hidden,
        hidden_bias=tensor_of(tensors, f"{part}.network.hidden_bias", np.float32, (width,)),
        output=tensor_of(tensors, f"{part}.network.output", np.float32, (width,)),
        bias=tensor_of(tensors, f"{part}.network.bias", np.float32, (1,)),
    )
    return Judge(network=network, calibration=_calibration(tensors, part))


def _calibration(tensors: Tensors, part: str) -> ScoreCalibration:
    name = f"{part}.calibration.scores"
    count = tensors[name].size if name in tensors else 0
    scores = tensor_of(tensors, name, np.float64, (count,))
    probabilities = tensor_of(tensors, f"{part}.calibration.probabilities", np.float64, (count,))
    if count == 0 or (np.diff(scores) <= 0).any() or (np.diff(probabilities) < 0).any():
        raise CheckpointError(f"the calibration of the {part} part does not rise")
    if probabilities[0] < LEAST_PROBABILITY or probabilities[-1] > 1 - LEAST_PROBABILITY:
        raise CheckpointError(f"the calibration of the {part} part reaches 0 or 1")
    return ScoreCalibration(scores=scores, probabilities=probabilities)


def _words(tensors: Tensors, words: object) -> WordTable:
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise CheckpointError("words must be a list of strings")
    if len(set(words)) != len(words):
        raise CheckpointError("words must be distinct")
    meaning = matrix_of(tensors, "words.meaning")
    if meaning.shape[0] != len(words):
        raise CheckpointError(f"there are {len(words)} words and the meaning of {meaning.shape[0]}")
    return WordTable(
        words=tuple(words),
        rarity=tensor_of(tensors, "words.rarity", np.float32, (len(words),)),
        meaning=meaning,
        evidence=tensor_of(tensors, "words.evidence", np.float32, (len(words), EVIDENCE_COLUMNS)),
    )


def _unread(_text: str) -> None:
    return None
