"""Mutations of a cache's verifiers. Each runs in a write transaction that holds the cache's lock, as changes
of categories do: that a category asks for consent and that nobody can give it never become true together."""

from sqlalchemy import Connection, insert, or_, select, update

from hashing.errors import CheckpointError
from hashing.verifier import Verifier, dump_verifier, load_verifier
from service.errors import InvalidRequestError, PreconditionError
from service.keys import cache_name, child_name
from service.records import CacheRecord, VerifierRecord
from service.registry import ACTIVE, CANDIDATE, bump_config, lock_cache
from service.rows import read_categories, read_verifier, read_verifier_weights
from service.tables import verifiers


def register_verifier(
    connection: Connection, cache: CacheRecord, verifier: Verifier, *, modality: str, now_ms: int
) -> VerifierRecord:
    """Keep a verifier as candidate; the same one again keeps what is there, but for weights that are damaged.

    Raises:
        InvalidRequestError: the cache has no such modality, or embeddings of another dimension.
        PreconditionError: it is kept for another modality.
    """
    spec = cache.modalities.get(modality)
    if spec is None:
        raise InvalidRequestError(
            f"{cache_name(cache.name)} has no modality {modality!r}", reason="UNKNOWN_MODALITY"
        )
    if verifier.dim != spec.dim:
        raise InvalidRequestError(
            f"the verifier reads {verifier.dim} dimensions, {cache_name(cache.name)} has {spec.dim}",
            reason="DIMENSION_MISMATCH",
            expected=spec.dim,
            got=verifier.dim,
        )
    same = (verifiers.c.cache_id == cache.id, verifiers.c.verifier_id == verifier.verifier_id)
    if connection.execute(select(verifiers.c.state).where(*same)).first() is None:
        values = {
            "cache_id": cache.id,
            "verifier_id": verifier.verifier_id,
            "modality": modality,
            "state": CANDIDATE,
            "weights": dump_verifier(verifier),
            "metrics": dict(verifier.metrics),
            "create_ms": now_ms,
        }
        connection.execute(insert(verifiers).values(**values))
    record = read_verifier(connection, cache, verifier.verifier_id)
    if record.modality != modality:
        name = child_name(cache.name, "verifiers", record.verifier_id)
        raise PreconditionError(f"{name} is of modality {record.modality!r}", reason="OTHER_MODALITY")
    try:
        load_stored_verifier(connection, cache, record)
    except CheckpointError:
        connection.execute(update(verifiers).where(*same).values(weights=dump_verifier(verifier)))
        bump_config(connection, cache.id)  # replicas that could not load it try again
    return record


def activate_verifier(connection: Connection, cache_id: int, verifier_id: str) -> VerifierRecord:
    """Make a verifier the one whose consent lookups of its modality ask for, in the place of another.

    Raises:
        NotFoundError: there is none of this id.
        PreconditionError: its weights are damaged.
    """
    cache = lock_cache(connection, cache_id)
    verifier = read_verifier(connection, cache, verifier_id)
    if verifier.state == ACTIVE:
        return verifier
    try:
        load_stored_verifier(connection, cache, verifier)
    except CheckpointError as error:
        name = child_name(cache.name, "verifiers", verifier_id)
        raise PreconditionError(f"{name}: {error}", reason="VERIFIER_DAMAGED") from error
    # Those of spaces that are no more, too: until now they stood for the consent that categories ask for.
    replaced = or_(
        verifiers.c.modality == verifier.modality, verifiers.c.modality.not_in(list(cache.modalities))
    )
    others = update(verifiers).where(verifiers.c.cache_id == cache.id, replaced)
    connection.execute(others.values(state=CANDIDATE))
    _set_state(connection, cache, verifier_id, ACTIVE)
    return read_verifier(connection, cache, verifier_id)


def deactivate_verifier(connection: Connection, cache_id: int, verifier_id: str) -> VerifierRecord:
    """Make a verifier a candidate again.

    Raises:
        NotFoundError: there is none of this id.
        PreconditionError: it is active, and a category asks for consent.
    """
    cache = lock_cache(connection, cache_id)
    verifier = read_verifier(connection, cache, verifier_id)
    if verifier.state != ACTIVE:
        return verifier
    asking = [
        category.name
        for category in read_categories(connection, cache.id)
        if category.policy.min_probability is not None
    ]
    if asking:
        name = child_name(cache.name, "verifiers", verifier_id)
        raise PreconditionError(
            f"{name} is asked for consent by category {asking[0]}",
            reason="VERIFIER_IN_USE",
            category=asking[0],
        )
    _set_state(connection, cache, verifier_id, CANDIDATE)
    return read_verifier(connection, cache, verifier_id)


def load_stored_verifier(connection: Connection, cache: CacheRecord, record: VerifierRecord) -> Verifier:
    """A verifier as the store keeps it.

    Raises:
        CheckpointError: it cannot be trusted, or does not fit the cache.
        NotFoundError: it is gone.
    """
    loaded = load_verifier(read_verifier_weights(connection, cache.id, record.verifier_id))
    if loaded.verifier_id != record.verifier_id:
        raise CheckpointError(f"it holds verifier {loaded.verifier_id}")
    spec = cache.modalities.get(record.modality)
    if spec is None or spec.dim != loaded.dim:
        raise CheckpointError(f"it reads {loaded.dim} dimensions, not those of modality {record.modality!r}")
    return loaded


def _set_state(connection: Connection, cache: CacheRecord, verifier_id: str, state: str) -> None:
    same = (verifiers.c.cache_id == cache.id, verifiers.c.verifier_id == verifier_id)
    connection.execute(update(verifiers).where(*same).values(state=state))
    bump_config(connection, cache.id)
