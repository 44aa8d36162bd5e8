"""The second stage of a lookup: whether a verifier agrees that an entry may answer for the request."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashing.errors import HashingError
from hashing.verifier import Verifier
from index.requests import Match
from service.coding import from_stored
from service.payload import known_text, payload_text

logger = logging.getLogger(__name__)

SHORTLIST = 16
"""Entries within the threshold that a verifier is asked about, the nearest ones."""


def probabilities_of(
    verifier: Verifier, matches: Sequence[Match], *, vector: NDArray[np.float32], text: str
) -> list[float] | None:
    """How probable it is that each match may answer; None where that cannot be said.

    matches: at least one, with vectors. vector: float32 [dim], unit, and text, "" where unknown, are the
    query's. No failure of the verifier looks like consent.
    """
    stored = np.stack([match.vector for match in matches if match.vector is not None])  # [n, dim]
    words = known_text(text)
    try:
        probabilities = verifier.probabilities(
            vector,
            from_stored(stored),
            query_text=words,
            # Without the query's text those of the entries say nothing.
            texts=[payload_text(match.payload) for match in matches] if words else (),
        )
    except HashingError as error:
        logger.warning("verifier %s failed: %s", verifier.verifier_id, error)
        return None
    if probabilities.shape != (len(matches),) or not np.isfinite(probabilities).all():
        logger.warning("verifier %s gave no probability to each entry", verifier.verifier_id)
        return None
    return [float(probability) for probability in probabilities]
