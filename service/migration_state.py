"""How a change of embedder stands, in values that a command prints."""

from typing import Any

from sqlalchemy import Engine, func, select

from hashing.mapped_threshold import thresholds_from
from service.database import reading
from service.embedder_maps import read_maps
from service.records import EmbedderMapRecord
from service.registry import ACTIVE
from service.rows import read_cache, read_categories
from service.spaces import modality_of, spaces_of
from service.tables import entries


def migration_state(engine: Engine, cache: str, *, modality: str, now_ms: int) -> dict[str, Any]:
    """The embedders of a modality with their live entries, and its maps, newest first.

    thresholds: by category, its own and that of mapped queries, cosine distances; None without an active map,
    and 0 where no mapped query is ever answered. Raises: NotFoundError, InvalidRequestError.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        spaces = spaces_of(record, modality)
        counted = select(entries.c.modality, func.count()).where(
            entries.c.cache_id == record.id, entries.c.expire_ms > now_ms
        )
        counts: dict[str, int] = {
            row[0]: row[1] for row in connection.execute(counted.group_by(entries.c.modality))
        }
        maps = [
            found for found in read_maps(connection, record.id) if modality_of(found.modality) == modality
        ]
        policies = {found.name: found.policy.threshold for found in read_categories(connection, record.id)}
    active = next((found for found in maps if found.state == ACTIVE), None)
    limits = None
    if active is not None:
        report = active.report
        limits = thresholds_from(report["mapped_thresholds"], query_count=report["held_out_count"])
    return {
        "cache": cache,
        "modality": modality,
        "embedders": [
            {
                "embedder_id": record.modalities[space].embedder_id,
                "dim": record.modalities[space].dim,
                "is_new": bool(record.modalities[space].succeeds),
                "entry_count": counts.get(space, 0),
            }
            for space in spaces
        ],
        "thresholds": None
        if limits is None
        else {name: (own, round(limits.limit(own), 4)) for name, own in policies.items()},
        "maps": [_told(found) for found in maps],
    }


def _told(found: EmbedderMapRecord) -> dict[str, Any]:
    report = {name: value for name, value in found.report.items() if name != "mapped_thresholds"}
    return {"embedder_id": found.embedder_id, "state": found.state, **report}
