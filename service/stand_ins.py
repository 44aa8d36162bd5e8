"""Who serves in the place of destroyed encoders: rows keep the codes that these gave them."""

from collections.abc import Mapping

from sqlalchemy import Connection, select

from service.registry import ACTIVE, DESTROYED, REJECTED
from service.rows import read_encoders
from service.tables import calibrations


def stand_ins(connection: Connection, cache_id: int) -> Mapping[str, str]:
    """Per destroyed encoder, the one whose queries search its codes: the active one where it may, else the
    newest that may. One that nobody may search for is left out; no stored row carries its codes."""
    known = read_encoders(connection, cache_id)
    destroyed = {record.encoder_id for record in known if record.state == DESTROYED}
    if not destroyed:
        return {}
    able = [record for record in known if record.state not in (DESTROYED, REJECTED)]
    able.sort(key=lambda record: record.state != ACTIVE)
    rank = {record.encoder_id: i for i, record in enumerate(able)}
    pairs = select(calibrations.c.query_encoder_id, calibrations.c.segment_encoder_id).where(
        calibrations.c.cache_id == cache_id, calibrations.c.segment_encoder_id.in_(destroyed)
    )
    found: dict[str, str] = {}
    for query_id, segment_id in connection.execute(pairs):
        if query_id in rank and rank[query_id] < rank.get(found.get(segment_id, ""), len(rank)):
            found[segment_id] = query_id
    return found
