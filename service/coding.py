"""From embeddings to codes: where encoders (bits) and the index (packed words) meet."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, target_bits
from hashing.inference import Encoder
from index.codes import pack
from service.errors import InvalidRequestError
from service.records import Coding

STORED_DTYPE = np.dtype("<f2")
_SMALLEST_NORM = 1e-12


def normalise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """L2-normalise rows.

    Args:
        embeddings: float32 [n, dim].

    Raises:
        InvalidRequestError: a row has NaN or infinity, or is zero.
    """
    wide = embeddings.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    if not np.isfinite(norms).all():
        raise InvalidRequestError("the embedding holds NaN or infinity", reason="EMBEDDING_NOT_FINITE")
    if (norms < _SMALLEST_NORM).any():
        raise InvalidRequestError("the embedding is a zero vector", reason="EMBEDDING_ZERO")
    unit: NDArray[np.float32] = (wide / norms[:, None]).astype(np.float32)
    return unit


def to_stored(embeddings: NDArray[np.float32]) -> NDArray[np.float16]:
    """Normalised rows as the store keeps them: float16 [n, dim]."""
    return embeddings.astype(STORED_DTYPE)


def from_stored(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """Stored rows, decoded and renormalised: float32 [n, dim]. A row's code is computed from this."""
    return normalise(vectors.astype(np.float32))


def vectors_of(blobs: Sequence[bytes]) -> NDArray[np.float16]:
    """Stored bytes of equal length as float16 [n, dim]."""
    return np.frombuffer(b"".join(blobs), dtype=STORED_DTYPE).reshape(len(blobs), -1)


def code_rows(
    encoder: Encoder, vectors: NDArray[np.float16], *, modality: str, labels: Sequence[Sequence[str]]
) -> list[Coding]:
    """What `encoder` makes of stored rows.

    A row whose labels the encoder does not all know gets no label code: an update issues one.
    """
    codes = pack(encoder.instance_bits(from_stored(vectors), modality=modality))
    label_codes = label_codes_of(encoder, labels)
    return [
        Coding(encoder_id=encoder.encoder_id, code=row.tobytes(), label_code=label_code)
        for row, label_code in zip(codes, label_codes, strict=True)
    ]


def label_codes_of(encoder: Encoder, labels: Sequence[Sequence[str]]) -> list[bytes | None]:
    """Label codes as packed bytes; None for a row without labels or with one that is not known."""
    if encoder.label_head is None:
        return [None] * len(labels)
    return class_codes_of(encoder.label_head.class_codes, labels)


def class_codes_of(issued: ClassCodes, labels: Sequence[Sequence[str]]) -> list[bytes | None]:
    """As label_codes_of, by class codes alone."""
    rows = [i for i, row in enumerate(labels) if row and all(label in issued for label in row)]
    codes: list[bytes | None] = [None] * len(labels)
    if rows:
        packed = pack(target_bits(issued, [labels[i] for i in rows]))
        for i, code in zip(rows, packed, strict=True):
            codes[i] = code.tobytes()
    return codes


@dataclass(frozen=True, slots=True)
class EncoderSet:
    """The encoders of one cache that serve: the active one, and those whose codes entries carry.

    `by_id` has an encoder for each id that rows carry: it is another one where that was destroyed.
    `trusted` holds the pairs (query encoder, segment encoder) that passed the gate; codes of any other
    encoder are searched with a query of that encoder's own.
    """

    active: Encoder | None = None
    by_id: Mapping[str, Encoder] = field(default_factory=dict)
    trusted: frozenset[tuple[str, str]] = frozenset()

    def query_codes(
        self, query: NDArray[np.float32], segment_encoder_ids: Iterable[str], *, modality: str
    ) -> dict[str, NDArray[np.uint64]]:
        """The query's code for each segment encoder.

        One query at a time, also of a batch: a product of several rows sums in another order, and BLAS shares
        it between threads that wait for each other, which takes milliseconds on busy cores.

        Args:
            query: float32 [dim], L2-normalised.
        """
        made: dict[str, NDArray[np.uint64]] = {}
        codes = {}
        for segment_encoder_id in segment_encoder_ids:
            encoder = self.query_encoder(segment_encoder_id)
            if encoder is None or modality not in encoder.modalities:
                continue
            if encoder.encoder_id not in made:
                bits = encoder.instance_bits(query[None, :], modality=modality)
                made[encoder.encoder_id] = pack(bits)[0]
            codes[segment_encoder_id] = made[encoder.encoder_id]
        return codes

    def radii(self, segment_encoder_ids: Iterable[str], threshold: float) -> dict[str, dict[int, int]]:
        """Per segment encoder, the Hamming radii that hold entries within the threshold, in bits.

        Args:
            threshold: cosine distance.

        Returns:
            By count of leading bits, the whole code last; an entry within the threshold is expected within
            all of them at once.
        """
        found = {}
        for segment_encoder_id in segment_encoder_ids:
            encoder = self.query_encoder(segment_encoder_id)
            if encoder is not None:
                found[segment_encoder_id] = encoder.radii(threshold)
        return found

    def query_encoder(self, segment_encoder_id: str) -> Encoder | None:
        """The encoder whose queries search the codes of `segment_encoder_id`."""
        if self.active is not None and (self.active.encoder_id, segment_encoder_id) in self.trusted:
            return self.active
        return self.by_id.get(segment_encoder_id)
