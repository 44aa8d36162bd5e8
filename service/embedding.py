"""What a request brings as embedding or text, as a normalised vector of the right space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.coding import normalise
from service.embedder import Embedder
from service.errors import EmbedderUnavailableError, InvalidRequestError
from service.keys import text_fingerprint
from service.records import CacheRecord
from service.spaces import find_space

DEFAULT_MODALITY = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An embedding (float32 [dim], as sent) or None, a text, their modality, and who made the embedding."""

    embedding: NDArray[np.float32] | None = None
    text: str = ""
    modality: str = DEFAULT_MODALITY
    embedder_id: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to make a vector of."""
        return self.embedding is None and not self.text.strip()


class Embedded(NamedTuple):
    """vector: float32 [dim], L2-normalised. space: that it is of, see `spaces`."""

    vector: NDArray[np.float32]
    space: str


def default_fingerprint(text: str, *, modality: str) -> str:
    """The fingerprint of a request that names none: its text's. Empty for a blank text, and for one of
    another modality: there it is not the whole request, but said of an image, say."""
    return text_fingerprint(text) if modality == DEFAULT_MODALITY else ""


def embed_inputs(
    cache: CacheRecord, inputs: Sequence[Input], *, embedder: Embedder | None, timeout_seconds: float
) -> list[Embedded]:
    """One vector per input; texts without embedding go to the embedder in one call, and are of its space.

    Raises:
        InvalidRequestError: unknown modality, wrong dimension or embedder, NaN, zero, nothing to embed.
        EmbedderUnavailableError: there is no embedder, or it does not answer.
    """
    spaces = [check_input(cache, source, embedder=embedder) for source in inputs]
    texts = [i for i, source in enumerate(inputs) if source.embedding is None]
    made: dict[int, Embedded] = {}
    if texts:
        embedded = _embed(
            cache, [inputs[i] for i in texts], embedder=embedder, timeout_seconds=timeout_seconds
        )
        made = dict(zip(texts, embedded, strict=True))
    return [
        made[i] if source.embedding is None else Embedded(normalise(source.embedding[None, :])[0], space)
        for i, (source, space) in enumerate(zip(inputs, spaces, strict=True))
    ]


def check_input(cache: CacheRecord, source: Input, *, embedder: Embedder | None = None) -> str:
    """The space that the input is of. embedder: that would embed its text; one that is named must be of the
    same space. Raises: InvalidRequestError: it does not fit.
    """
    space = find_space(cache, source.modality, source.embedder_id)
    spec = cache.modalities[space]
    if source.embedding is not None and len(source.embedding) != spec.dim:
        raise InvalidRequestError(
            f"the embedding has {len(source.embedding)} dimensions, the cache has {spec.dim}",
            reason="DIMENSION_MISMATCH",
            expected=spec.dim,
            got=len(source.embedding),
        )
    by = None if embedder is None else embedder.spec
    is_embedded_here = source.embedding is None and bool(source.text.strip())
    if by is None or not is_embedded_here or not source.embedder_id or source.modality != DEFAULT_MODALITY:
        return space
    if find_space(cache, source.modality, by.embedder_id) != space:
        raise InvalidRequestError(
            f"the server embeds texts by {by.embedder_id!r}, not by {source.embedder_id!r}",
            reason="EMBEDDER_MISMATCH",
            expected=by.embedder_id,
            got=source.embedder_id,
        )
    return space


def _embed(
    cache: CacheRecord, inputs: Sequence[Input], *, embedder: Embedder | None, timeout_seconds: float
) -> list[Embedded]:
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
    embedder_id = embedder.spec.embedder_id if embedder.spec else ""
    space = check_input(cache, Input(embedding=embedded[0], embedder_id=embedder_id))
    for source in inputs:  # again: only a process that runs says which embedder it is
        check_input(cache, source, embedder=embedder)
    return [Embedded(vector, space) for vector in normalise(embedded)]
