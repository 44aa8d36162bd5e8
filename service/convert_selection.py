"""What an invalidation selects, from the wire."""

from collections.abc import Sequence

from nearhit.v1 import semantic_cache_service_pb2 as cache_pb

from service.convert import (
    KEY_BYTES,
    check_term,
    check_text,
    child_ids,
    from_timestamp,
    to_input,
    to_positive_milliseconds,
    too_large,
)
from service.embedding import Input
from service.errors import InvalidRequestError
from service.policy import MODEL_BYTES
from service.records import Selection
from service.replica import CacheState

SELECTOR_VALUES = 10_000


def to_selection(
    request: cache_pb.InvalidateRequest, cache: str, state: CacheState, *, now_ms: int
) -> Selection:
    """All but `near`, which needs an embedding: see `to_near`. Raises: InvalidRequestError, NotFoundError."""
    for field in ("entries", "categories", "tags", "sources", "models"):
        if len(getattr(request, field)) > SELECTOR_VALUES:
            raise too_large(field, f"{SELECTOR_VALUES} values")
    for tag in request.tags:
        check_term(tag, field="tags")
    _check_values(request.sources, field="sources", most_bytes=KEY_BYTES)
    _check_values(request.models, field="models", most_bytes=MODEL_BYTES)
    return Selection(
        names=child_ids(request.entries, cache, "entries"),
        category_ids=tuple(
            state.category(name).id for name in child_ids(request.categories, cache, "categories")
        ),
        tags=tuple(request.tags),
        sources=tuple(request.sources),
        models=tuple(request.models),
        created_before_ms=_created_before(request, now_ms=now_ms),
    )


def to_near(request: cache_pb.InvalidateRequest) -> tuple[Input, float] | None:
    """What entries must be near to, and the radius, a cosine distance. Raises: InvalidRequestError."""
    if request.HasField("near") != request.HasField("radius"):
        raise InvalidRequestError("near and radius are given together, or neither", reason="INVALID_RADIUS")
    if not request.HasField("near"):
        return None
    if not 0 <= request.radius <= 2:  # nor NaN
        raise InvalidRequestError(
            f"a radius is a cosine distance in [0, 2], not {request.radius}", reason="INVALID_RADIUS"
        )
    return to_input(request.near), request.radius


def _created_before(request: cache_pb.InvalidateRequest, *, now_ms: int) -> int | None:
    limits = []
    if request.HasField("created_before"):
        limits.append(from_timestamp(request.created_before))
    if request.HasField("older_than"):
        age_ms = to_positive_milliseconds(request.older_than, field="older_than", reason="INVALID_AGE")
        limits.append(now_ms - age_ms)
    return min(limits, default=None)


def _check_values(values: Sequence[str], *, field: str, most_bytes: int) -> None:
    for value in values:
        if not value:  # most entries have none: that they are all meant is hardly meant
            raise InvalidRequestError(f"{field}: a value is empty", reason="INVALID_VALUE", field=field)
        check_text(value, field=field, most_bytes=most_bytes)
