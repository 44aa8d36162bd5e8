"""The embedding spaces of a cache: one a modality, and while an embedder takes another's place, two.

A space is a key of `CacheRecord.modalities`, and what entries, segments, encoders and verifiers carry as
their modality. The first one of a modality is named as the modality is, later ones `text:2`, `text:3`: no
caller can name those, and none is used again. Callers say the modality, and which embedder made an embedding.
"""

from service.errors import InvalidRequestError
from service.records import CacheRecord

_MARK = ":"


def modality_of(space: str) -> str:
    """What callers call it."""
    return space.partition(_MARK)[0]


def is_first(space: str) -> bool:
    """Whether no embedder of its modality came before it."""
    return _MARK not in space


def space_number(space: str) -> int:
    """1 for the first space of a modality."""
    return int(space.partition(_MARK)[2] or 1)


def later_space(modality: str, number: int) -> str:
    """The name of a modality's space; number: over 1."""
    return f"{modality}{_MARK}{number}"


def modalities_of(cache: CacheRecord) -> tuple[str, ...]:
    """What callers may name."""
    return tuple(dict.fromkeys(modality_of(space) for space in cache.modalities))


def spaces_of(cache: CacheRecord, modality: str) -> tuple[str, ...]:
    """The spaces of a modality, the current one first. Raises: InvalidRequestError: there is none."""
    found = [space for space in cache.modalities if modality_of(space) == modality]
    if not found:
        raise InvalidRequestError(
            f"the cache has no modality {modality!r}, it has {', '.join(modalities_of(cache))}",
            reason="UNKNOWN_MODALITY",
        )
    return tuple(sorted(found, key=lambda space: bool(cache.modalities[space].succeeds)))


def current_space(cache: CacheRecord, modality: str) -> str:
    """The space of embeddings of which no embedder is named, and the one that is trained on.

    Raises: InvalidRequestError: there is no such modality.
    """
    return spaces_of(cache, modality)[0]


def succeeding_space(cache: CacheRecord, modality: str) -> str | None:
    """The space that takes the current one's place; None: there is none. Raises: InvalidRequestError."""
    return next(iter(spaces_of(cache, modality)[1:]), None)


def find_space(cache: CacheRecord, modality: str, embedder_id: str) -> str:
    """The space of an embedder's embeddings; embedder_id empty: the current one.

    A space whose embedder is not known takes those of any that is not another's, and is of the first that a
    stored entry names from then on (see `CacheTransaction.check_embedders`).
    Raises: InvalidRequestError: no such modality or embedder.
    """
    spaces = spaces_of(cache, modality)
    if not embedder_id:
        return spaces[0]
    known = {cache.modalities[space].embedder_id: space for space in spaces}
    found = known.get(embedder_id, known.get(""))
    if found is not None:
        return found
    held = " and ".join(repr(cache.modalities[space].embedder_id) for space in spaces)
    raise InvalidRequestError(
        f"the embedding is of {embedder_id!r}, the cache holds those of {held}",
        reason="EMBEDDER_MISMATCH",
        expected=", ".join(cache.modalities[space].embedder_id for space in spaces),
        got=embedder_id,
    )
