"""Proof of a forgetting: what is left equals what never knew the rows."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from hashing.checkpoint import load_encoder
from hashing.class_scores import ABSENT_BIAS, ClassHead
from hashing.label_part import LabelPart, LearnedState
from hashing.learned_states import load_states
from hashing.lifelong import retrained
from service.learned_rows import LearnedRow, members, read_learned, vectors_and_labels
from service.records import CacheRecord
from service.rows import read_encoder, read_weights
from service.tables import encoders, entries

DIFFERENCE_TOLERANCE = 1e-3
"""Of the range of what label parts say of the rows: they are solved in float32."""

UNDECIDED_VALUE = 1e-5  # a bit whose value is nearer to 0 may fall on either side
_CHUNK = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelProof:
    """A label part of an encoder against one trained on the rows that it says it has learned, and no others.

    max_difference: of what the two say of those rows (scores of classes, or label values), over its range.
    query_bits_changed: of those rows' label queries, |h| < 1e-5 excepted. reason: why nothing
    could be compared, else "".
    """

    encoder_id: str
    modality: str
    row_count: int
    max_difference: float | None = None
    query_bits_changed: int | None = None
    reason: str = ""

    @property
    def problem(self) -> str:
        """Why the two are not proved to be equal within the tolerance; "": they are."""
        if self.max_difference is None:
            return f"nothing was compared: {self.reason}"
        if self.max_difference > DIFFERENCE_TOLERANCE or self.query_bits_changed:
            return (
                f"what it says is off training on the rest by {self.max_difference:.3g}, tolerance"
                f" {DIFFERENCE_TOLERANCE}, and {self.query_bits_changed} bits of its queries"
            )
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class StoredCodes:
    """Codes of all entries. row_ids: int64 [n], ascending. bits: uint8 [n, bytes], code then label code.
    known: bool [n, 2], which of the two there are."""

    row_ids: NDArray[np.int64]
    bits: NDArray[np.uint8]
    known: NDArray[np.bool_]


def prove_label_parts(connection: Connection, cache: CacheRecord, encoder_id: str) -> tuple[LabelProof, ...]:
    """Train each label part of an encoder anew on the rows that it has learned, and compare.

    Takes O(rows D^2 + D^3). Raises: CheckpointError.
    """
    encoder = load_encoder(read_weights(connection, cache.id, encoder_id))
    content = connection.execute(
        select(encoders.c.learning_state).where(
            encoders.c.cache_id == cache.id, encoders.c.encoder_id == encoder_id
        )
    ).scalar()
    states = load_states(content, encoder=encoder)
    learned = read_learned(connection, cache.id, members(connection, cache.id, encoder_id))
    traced = read_encoder(connection, cache, encoder_id).untraced_row_count == 0
    return tuple(
        _prove(
            head,
            states.get(modality),
            [row for row in learned if row.modality == modality],
            encoder_id=encoder_id,
            traced=traced,
        )
        for modality, head in encoder.label_heads.items()
    )


def _prove(
    head: LabelPart, state: LearnedState | None, rows: list[LearnedRow], *, encoder_id: str, traced: bool
) -> LabelProof:
    proof = LabelProof(encoder_id=encoder_id, modality=head.modality, row_count=len(rows))
    if not traced:
        return replace(proof, reason="it has learned rows that the store never had")
    if state is None or not rows:
        return replace(proof, reason="what it has learned is not kept")
    oracle = retrained(state, *vectors_and_labels(rows)).head(modality=head.modality)
    return replace(
        proof,
        max_difference=_max_difference(head, oracle, rows),
        query_bits_changed=_query_bits_changed(head, oracle, rows),
    )


def _max_difference(head: LabelPart, oracle: LabelPart, rows: list[LearnedRow]) -> float:
    most, low, high = 0.0, np.inf, -np.inf
    for start in range(0, len(rows), _CHUNK):
        vectors, _ = vectors_and_labels(rows[start : start + _CHUNK])
        said, expected = _said(head, vectors), _said(oracle, vectors)
        most = max(most, float(np.abs(said - expected).max()))
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
    return most / ((high - low) or 1.0)


def _said(head: LabelPart, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a label part makes of rows before any ranking; classes without rows are left out."""
    if isinstance(head, ClassHead):
        return head.scores(vectors)[:, head.class_bias > ABSENT_BIAS]
    return head.values(vectors)


def _query_bits_changed(head: LabelPart, oracle: LabelPart, rows: list[LearnedRow]) -> int:
    changed = 0
    for start in range(0, len(rows), _CHUNK):
        vectors, _ = vectors_and_labels(rows[start : start + _CHUNK])
        values, expected = head.values(vectors), oracle.values(vectors)
        decided = np.minimum(np.abs(values), np.abs(expected)) >= UNDECIDED_VALUE
        changed += int(np.count_nonzero(((values > 0) != (expected > 0)) & decided))
    return changed


def read_codes(connection: Connection, cache: CacheRecord) -> StoredCodes:
    """The codes of all entries; (code_bits + label_bits) / 8 + 10 bytes of memory a row."""
    widths = (cache.code_bits // 8, cache.label_bits // 8)
    id_parts, bit_parts, known_parts = [], [], []
    query = select(entries.c.id, entries.c.code, entries.c.label_code).where(entries.c.cache_id == cache.id)
    after = 0
    while True:
        page = query.where(entries.c.id > after).order_by(entries.c.id).limit(_CHUNK)
        rows = connection.execute(page).all()
        blobs = [
            (code or b"").ljust(widths[0], b"\0") + (label or b"").ljust(widths[1], b"\0")
            for _, code, label in rows
        ]
        id_parts.append(np.array([row.id for row in rows], dtype=np.int64))
        bit_parts.append(np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(rows), sum(widths)))
        known = [(code is not None, label is not None) for _, code, label in rows]
        known_parts.append(np.array(known, dtype=np.bool_).reshape(-1, 2))
        if len(rows) < _CHUNK:
            return StoredCodes(
                np.concatenate(id_parts), np.concatenate(bit_parts), np.concatenate(known_parts)
            )
        after = rows[-1].id


def code_bits_changed(before: StoredCodes, after: StoredCodes, *, code_bits: int) -> int:
    """Bits of codes and label codes that differ, of the rows that had them both times."""
    _, first, second = np.intersect1d(before.row_ids, after.row_ids, assume_unique=True, return_indices=True)
    differing = before.bits[first] ^ after.bits[second]  # [m, bytes]
    both = before.known[first] & after.known[second]  # [m, 2]
    split = code_bits // 8
    return sum(
        int(np.bitwise_count(part[mask]).sum())
        for part, mask in ((differing[:, :split], both[:, 0]), (differing[:, split:], both[:, 1]))
    )
