"""The encoder as a server holds it: immutable, numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels, target_bits
from hashing.cross_part import CrossPart, CrossQuery
from hashing.drift import DriftReference, drift_score
from hashing.embeddings import as_rows
from hashing.errors import NoCrossPartError, NoLabelPartError, UnknownModalityError
from hashing.identity import (
    Tensors,
    content_hash,
    cross_tensors,
    encoder_metadata,
    label_tensors,
    projection_tensors,
    scorer_tensors,
)
from hashing.label_part import LabelPart
from hashing.pair_scorer import PairScorer
from hashing.radius import RadiusTable
from hashing.tower import InstanceMap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """Maps embeddings to bits. Rows are expected L2-normalised; bits are bool, not packed.

    projections: modality -> instance projection or tower, all of one code_bits. radius_table,
    drift_reference: measured on the first modality. label_head: None when trained without labels.
    cross_part: what searches from one modality to another; None where there is none. pair_scorer: how likely
    a query and a code of the first modality mean the same; None where no pairs were learned from.
    parent_id: the encoder that this one was updated from. metrics: figures of its training, no part of its
    identity.

    encoder_id: hash of the content, 32 hex characters. instance_id: hash of the projections alone;
    equal instance_id means equal instance codes.
    """

    projections: Mapping[str, InstanceMap]
    radius_table: RadiusTable
    drift_reference: DriftReference
    label_head: LabelPart | None = None
    cross_part: CrossPart | None = None
    pair_scorer: PairScorer | None = None
    parent_id: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    encoder_id: str = field(init=False)
    instance_id: str = field(init=False)

    def __post_init__(self) -> None:
        widths = {projection.code_bits for projection in self.projections.values()}
        assert widths == {self.radius_table.code_bits}, "one code_bits for all projections and the radii"
        object.__setattr__(self, "projections", MappingProxyType(dict(self.projections)))
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))
        object.__setattr__(self, "encoder_id", content_hash(self.tensors(), self.identity_metadata()))
        instance_id = content_hash(projection_tensors(self.projections), {})
        object.__setattr__(self, "instance_id", instance_id)

    @property
    def code_bits(self) -> int:
        return self.radius_table.code_bits

    @property
    def label_bits(self) -> int | None:
        return None if self.label_head is None else self.label_head.class_codes.label_bits

    @property
    def modalities(self) -> Mapping[str, int]:
        """Modality -> embedding dimensions."""
        return {modality: projection.dim for modality, projection in self.projections.items()}

    @property
    def labels(self) -> tuple[str, ...]:
        """The known classes in order of issue; () without a label part."""
        return () if self.label_head is None else self.label_head.class_codes.labels

    def instance_values(
        self, embeddings: NDArray[np.floating], *, modality: str = "text"
    ) -> NDArray[np.float32]:
        """Map float [n, dim] to the real values h, float32 [n, code_bits]; bit = h > 0.

        A row gives the same bits alone and in a batch, those with |h| < 1e-5 excepted.
        Raises: EmbeddingsError; DimensionError; UnknownModalityError.
        """
        projection = self.projections.get(modality)
        if projection is None:
            raise UnknownModalityError(modality, known=tuple(self.projections))
        return projection.project(as_rows(embeddings, dim=projection.dim))

    def instance_bits(self, embeddings: NDArray[np.floating], *, modality: str = "text") -> NDArray[np.bool_]:
        """Map float [n, dim] to instance codes, bool [n, code_bits]. Raises: as `instance_values`."""
        return self.instance_values(embeddings, modality=modality) > 0

    @property
    def label_heads(self) -> Mapping[str, LabelPart]:
        """Modality -> what makes class queries of its embeddings, `label_head` first; empty without one."""
        if self.label_head is None:
            return {}
        others = {} if self.cross_part is None else self.cross_part.label_heads
        return {self.label_head.modality: self.label_head, **others}

    @property
    def label_modalities(self) -> tuple[str, ...]:
        """The modalities whose embeddings make class queries; () without a label part."""
        return tuple(self.label_heads)

    def label_values(
        self, embeddings: NDArray[np.floating], *, modality: str | None = None
    ) -> NDArray[np.float32]:
        """Map float [n, dim] of `modality`, by default the label part's, to class queries.

        Score a stored label code, of a row of whichever modality, by its inner product, in -1/+1, with the
        query. Returns float32 [n, label_bits].
        Raises: NoLabelPartError; UnknownModalityError; EmbeddingsError; DimensionError.
        """
        first = self._label_head()
        head = first if modality is None else self.label_heads.get(modality)
        if head is None:
            raise UnknownModalityError(str(modality), known=self.label_modalities)
        return head.values(as_rows(embeddings, dim=head.features.dim))

    def can_cross(self, modality: str, *, target: str) -> bool:
        """Tell whether queries of `modality` can search the codes of `target`.

        Towers trained together have all bits in common; other maps need a cross part.
        """
        if self.cross_part is not None:
            return (modality, target) in self.cross_part.queries
        return modality in self.projections and target in self.projections

    def cross_values(
        self, embeddings: NDArray[np.floating], *, modality: str, target: str
    ) -> NDArray[np.float32]:
        """Map float [n, dim] of one modality to queries against the instance codes of another.

        Score a code by its inner product, in -1/+1, with the query, which is 0 for bits that modalities do
        not have in common. Returns float32 [n, code_bits].
        Raises: NoCrossPartError; EmbeddingsError; DimensionError.
        """
        query = self._cross_query(modality, target)
        if query is None:
            return self.instance_values(embeddings, modality=modality)
        return self._widened(query.values(as_rows(embeddings, dim=query.features.dim)))

    def cross_bits(
        self, embeddings: NDArray[np.floating], *, modality: str, target: str
    ) -> NDArray[np.bool_]:
        """Map float [n, dim] of one modality to binary queries against another, bool [n, code_bits].

        Only the bits of `cross_mask` mean anything; the others are 0. Raises: as `cross_values`.
        """
        query = self._cross_query(modality, target)
        if query is None:
            return self.instance_bits(embeddings, modality=modality)
        return self._widened(query.values(as_rows(embeddings, dim=query.features.dim)) - query.mean) > 0

    @property
    def cross_mask(self) -> NDArray[np.bool_]:
        """Which bits of an instance code modalities have in common, bool [code_bits]."""
        mask = np.ones(self.code_bits, dtype=np.bool_)
        if self.cross_part is not None:
            mask[: self.code_bits - self.cross_part.function_bits] = False
        return mask

    def class_bits(self, labels: Labels) -> NDArray[np.bool_]:
        """Return the label codes of rows with these labels, bool [n, label_bits].

        Raises: NoLabelPartError; UnknownLabelError; TrainingDataError for a row without a label.
        """
        return target_bits(self._label_head().class_codes, labels)

    def radii(self, cosine_distance: float) -> dict[int, int]:
        """Return the Hamming radii in bits, by count of leading bits, that rows at this cosine distance need.

        The last count is code_bits. See `RadiusTable.radii`. Raises: ValueError for NaN.
        """
        return self.radius_table.radii(cosine_distance)

    def drift_score(self, embeddings: NDArray[np.floating], *, modality: str = "text") -> float:
        """Return how far float [n, dim] are off the training data; about 0 +- 1 for rows like it.

        See `drift.drift_score`. Raises: EmbeddingsError, also for no rows; DimensionError;
        UnknownModalityError.
        """
        return drift_score(self.drift_reference, self.instance_values(embeddings, modality=modality))

    def tensors(self) -> Tensors:
        """Return every array of the encoder by name."""
        label_part = {} if self.label_head is None else label_tensors(self.label_head)
        drift = {"drift.mean": self.drift_reference.mean}
        cross_part = {} if self.cross_part is None else cross_tensors(self.cross_part)
        scorer = {} if self.pair_scorer is None else scorer_tensors(self.pair_scorer)
        return {**projection_tensors(self.projections), **drift, **label_part, **cross_part, **scorer}

    def identity_metadata(self) -> dict[str, object]:
        """Return what `encoder_id` covers besides the tensors."""
        return encoder_metadata(
            radius_table=self.radius_table,
            drift_reference=self.drift_reference,
            label_head=self.label_head,
            parent_id=self.parent_id,
            cross_part=self.cross_part,
            pair_scorer=self.pair_scorer,
        )

    def _cross_query(self, modality: str, target: str) -> CrossQuery | None:
        """Return the map of the query; None where its instance values are the query."""
        if not self.can_cross(modality, target=target):
            raise NoCrossPartError(modality, target=target)
        return None if self.cross_part is None else self.cross_part.queries[modality, target]

    def _widened(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Set values of the function bits, float32 [n, function_bits], in their places of the code."""
        wide = np.zeros((values.shape[0], self.code_bits), dtype=np.float32)
        wide[:, self.code_bits - values.shape[1] :] = values
        return wide

    def _label_head(self) -> LabelPart:
        if self.label_head is None:
            raise NoLabelPartError(self.encoder_id)
        return self.label_head
