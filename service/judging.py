"""Verdicts on lookups: kept as they are given, and what they do to the entry that was served."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, insert, select, update

from service.coding import from_stored, vectors_of
from service.errors import InvalidRequestError, NotFoundError
from service.evidence import unpack_evidence
from service.learned_rows import is_forgotten
from service.records import NewEntry, Operation, RecordedVerdict
from service.spaces import modality_of
from service.tables import entries, feedback, responses
from service.tokens import LookupToken
from service.transaction import CacheTransaction

DISTANCE_TOLERANCE = 5e-3
"""Of a cosine distance between float16 vectors and the one that an index told, whose rows may be int8."""


def verdict_columns(token: LookupToken, verdict: str) -> dict[str, Any]:
    """What `feedback` keeps of a verdict on the lookup of a token."""
    return {
        "category_id": token.category_id,
        "lookup_digest": token.digest,
        "entry_id": token.entry_id,
        "verdict": verdict,
        "distance": token.distance,
        "threshold": token.threshold,
        "query_code": token.query_code or None,
        "generation": token.generation,
        "seq": token.seq,
        "evidence": token.evidence or None,
    }


def compare_responses(tx: CacheTransaction, computed: Sequence[tuple[LookupToken | None, NewEntry]]) -> None:
    """Of responses that were computed for misses, say whether what the misses had found would have been
    right.

    Where the category asks for it, the entry that was found is there, and it was not served. The new entry's
    vector is kept as the query. Comes before what is computed is stored, as it may take the place of the
    entry.
    """
    known = {category.id: category for category in tx.all_categories()}
    for token, row in computed:
        category = None if token is None else known.get(token.category_id)
        if token is None or category is None or not category.policy.compare_responses:
            continue
        evidence = unpack_evidence(token.evidence)
        if evidence is None or evidence.was_served:
            continue
        # What failed, or was computed for something else, says nothing of the candidate.
        if row.completion != "complete" or row.category_id != token.category_id:
            continue
        query = select(responses.c.body).join(entries, entries.c.id == responses.c.entry_id)
        found = tx.connection.execute(
            query.where(entries.c.cache_id == tx.cache_id, entries.c.id == token.entry_id)
        ).first()
        if found is None or is_forgotten(tx.connection, tx.cache_id, token.entry_id):
            continue
        columns = verdict_columns(token, "right" if found.body == row.response else "wrong")
        columns["query_vector"] = row.vector.tobytes()
        try:
            record_feedback(tx, columns, query_modality=modality_of(row.modality), query_space=row.modality)
        except InvalidRequestError:
            continue  # it was computed for another modality: nothing to compare


def record_feedback(
    tx: CacheTransaction, values: dict[str, Any], *, query_modality: str = "", query_space: str = ""
) -> RecordedVerdict:
    """Keep a verdict, unless the same lookup had one already; its query only as half of a pair: the entry is
    there, of the same embedder, is not the query itself, and as far from it as the lookup found. An answer
    that was served and is wrong is demoted or removed where the category's policy says so; a right one is
    demoted no longer.

    values: columns of `feedback`. query_modality: that was judged; empty: no query was given. query_space: of
    `query_vector`, where that is given (`spaces`).
    Raises:
        NotFoundError: the category is gone, or the entry was forgotten.
        InvalidRequestError: the query is of another modality than the entry.
    """
    category = tx.category(values["category_id"])
    if is_forgotten(tx.connection, tx.cache_id, values["entry_id"]):
        raise NotFoundError("the entry of this lookup was forgotten", reason="ENTRY_NOT_FOUND")
    known = select(feedback.c.id).where(
        feedback.c.cache_id == tx.cache_id, feedback.c.lookup_digest == values["lookup_digest"]
    )
    if tx.connection.execute(known).first() is not None:
        return RecordedVerdict(is_first=False)
    if query_modality:
        of_entry = (entries.c.cache_id == tx.cache_id, entries.c.id == values["entry_id"])
        entry = tx.connection.execute(select(entries.c.modality, entries.c.vector).where(*of_entry)).first()
        if entry is not None and modality_of(entry.modality) != query_modality:
            raise InvalidRequestError(
                f"the query is of the modality {query_modality!r}, the entry of"
                f" {modality_of(entry.modality)!r}",
                reason="MODALITY_MISMATCH",
            )
        query = values.get("query_vector")
        if (
            entry is None
            or query is None
            or entry.modality != query_space
            or query == entry.vector
            or not _is_so_far(query, entry.vector, values["distance"])
        ):
            values = {**values, "query_vector": None}
    tx.connection.execute(insert(feedback).values(cache_id=tx.cache_id, create_ms=tx.now_ms, **values))
    evidence = unpack_evidence(values.get("evidence") or b"")
    if evidence is None or evidence.was_served:
        _act_on_verdict(tx, values["entry_id"], values["verdict"], on_wrong=category.policy.on_wrong)
    return RecordedVerdict(is_first=True, query_kept=values.get("query_vector") is not None)


def _act_on_verdict(tx: CacheTransaction, row_id: int, verdict: str, *, on_wrong: str) -> None:
    if verdict == "wrong" and on_wrong == "remove":
        tx.delete([row_id])
    elif verdict == "wrong" and on_wrong == "demote":
        _set_demoted(tx, row_id, tx.now_ms)
    elif verdict == "right":
        _set_demoted(tx, row_id, None)


def _set_demoted(tx: CacheTransaction, row_id: int, demote_ms: int | None) -> None:
    """Demote an entry, or no longer; followers read the row again where that changes something."""
    differs = entries.c.demote_ms.is_not(None) if demote_ms is None else entries.c.demote_ms.is_(None)
    row = and_(entries.c.cache_id == tx.cache_id, entries.c.id == row_id, differs)
    if tx.connection.execute(update(entries).where(row).values(demote_ms=demote_ms)).rowcount:
        tx.record(Operation.UPSERT, [row_id])


def _is_so_far(query: bytes, vector: bytes, distance: float) -> bool:
    """Whether two stored vectors are as far from each other, a cosine distance, as the lookup found them."""
    if len(query) != len(vector):
        return False
    first, second = from_stored(vectors_of([query, vector]))
    return abs(1 - float(first @ second) - distance) <= DISTANCE_TOLERANCE
