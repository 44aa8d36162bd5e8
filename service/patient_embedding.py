"""Embeds texts of which some may be such that the embedder fails at them."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.coding import normalise
from service.errors import EmbedderUnavailableError, InvalidRequestError

EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to float32 [n, dim]. Raises: EmbedderUnavailableError."""

SILENT_TEXTS = 8
"""Texts tried one at a time before it is said that the embedder answers none."""

_FAILURES = (EmbedderUnavailableError, InvalidRequestError)  # no answer, or none that is an embedding

logger = logging.getLogger(__name__)


class PatientEmbedding:
    """Tells texts that cannot be embedded from an embedder that does not work: that one fails at a text, too,
    that it has embedded before."""

    def __init__(self, embed: EmbedTexts) -> None:
        self._embed = embed
        self._embedded = ""  # a text that it has embedded

    def embed(self, texts: Mapping[int, str]) -> dict[int, NDArray[np.float32]]:
        """Embed texts in one call, or, where that fails, one at a time, without those that fail.

        texts: one at least. Returns float32 [dim], L2-normalised, by their keys.
        Raises: EmbedderUnavailableError, InvalidRequestError: of no text is an embedding made.
        """
        try:
            vectors = normalise(self._embed(list(texts.values())))
        except _FAILURES as error:
            logger.warning("%d texts cannot be embedded together: %s", len(texts), error)
            return self._embed_singly(texts)
        *_, self._embedded = texts.values()
        return dict(zip(texts, vectors, strict=True))

    def _embed_singly(self, texts: Mapping[int, str]) -> dict[int, NDArray[np.float32]]:
        made: dict[int, NDArray[np.float32]] = {}
        for tried, (key, text) in enumerate(texts.items(), start=1):
            try:
                made[key] = normalise(self._embed([text]))[0]
                self._embedded = text
            except _FAILURES:
                if self._embedded:
                    normalise(self._embed([self._embedded]))  # or it is not for the text
                elif tried >= min(SILENT_TEXTS, len(texts)):
                    raise
        return made
