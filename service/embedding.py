"""What a request brings as embedding or text, as a normalised vector of the right space."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.coding import normalise
from service.embedder import Embedder
from service.errors import EmbedderUnavailableError, InvalidRequestError
from service.keys import text_fingerprint
from service.records import CacheRecord, ModalitySpec

DEFAULT_MODALITY = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An embedding (float32 [dim], as sent) or None, a text, and the space that they are of."""

    embedding: NDArray[np.float32] | None = None
    text: str = ""
    modality: str = DEFAULT_MODALITY
    embedder_id: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to make a vector of."""
        return self.embedding is None and not self.text.strip()


def default_fingerprint(text: str, *, modality: str) -> str:
    """The fingerprint of a request that names none: its text's. Empty for a blank text, and for one of
    another modality: there it is not the whole request, but said of an image, say."""
    return text_fingerprint(text) if modality == DEFAULT_MODALITY else ""


def embed_inputs(
    cache: CacheRecord, inputs: Sequence[Input], *, embedder: Embedder | None, timeout_seconds: float
) -> list[NDArray[np.float32]]:
    """One normalised float32 [dim] per input; texts without embedding go to the embedder in one call.

    Raises:
        InvalidRequestError: unknown modality, wrong dimension or embedder, NaN, zero, nothing to embed.
        EmbedderUnavailableError: there is no embedder, or it does not answer.
    """
    for source in inputs:
        check_input(cache, source)
    vectors: list[NDArray[np.float32] | None] = [
        None if source.embedding is None else normalise(source.embedding[None, :])[0] for source in inputs
    ]
    texts = [i for i, vector in enumerate(vectors) if vector is None]
    if texts:
        embedded = _embed(
            cache, [inputs[i] for i in texts], embedder=embedder, timeout_seconds=timeout_seconds
        )
        for i, vector in zip(texts, embedded, strict=True):
            vectors[i] = vector
    return [vector for vector in vectors if vector is not None]


def check_input(cache: CacheRecord, source: Input) -> ModalitySpec:
    """The space that the input is of. Raises: InvalidRequestError: it does not fit."""
    spec = cache.modalities.get(source.modality)
    if spec is None:
        raise InvalidRequestError(
            f"the cache has no modality {source.modality!r}, it has {', '.join(cache.modalities)}",
            reason="UNKNOWN_MODALITY",
        )
    if source.embedding is not None and len(source.embedding) != spec.dim:
        raise InvalidRequestError(
            f"the embedding has {len(source.embedding)} dimensions, the cache has {spec.dim}",
            reason="DIMENSION_MISMATCH",
            expected=spec.dim,
            got=len(source.embedding),
        )
    if spec.embedder_id and source.embedder_id and source.embedder_id != spec.embedder_id:
        raise InvalidRequestError(
            f"the embedding is of {source.embedder_id!r}, the cache holds those of {spec.embedder_id!r}",
            reason="EMBEDDER_MISMATCH",
            expected=spec.embedder_id,
            got=source.embedder_id,
        )
    return spec


def _embed(
    cache: CacheRecord, inputs: Sequence[Input], *, embedder: Embedder | None, timeout_seconds: float
) -> NDArray[np.float32]:
    for source in inputs:
        if source.is_empty:
            raise InvalidRequestError("neither an embedding nor a text is given", reason="NOTHING_TO_EMBED")
        if source.modality != DEFAULT_MODALITY:
            raise InvalidRequestError(
                f"a text cannot be embedded for modality {source.modality!r}", reason="UNKNOWN_MODALITY"
            )
    if embedder is None:
        raise EmbedderUnavailableError("the server has no embedder: send an embedding")
    embedded = embedder.embed([source.text for source in inputs], timeout_seconds=timeout_seconds)
    for row in embedded[:1]:
        check_input(
            cache, Input(embedding=row, embedder_id=embedder.spec.embedder_id if embedder.spec else "")
        )
    return normalise(embedded)
