"""Lookup tokens: what a verdict needs to know of its lookup, signed, so that any replica takes it.

A token is base64url of: version, cache and category and entry row ids, seq, time in nanoseconds, distance,
threshold, generation, query code, evidence (see there), then the first 16 bytes of an HMAC-SHA256 over all
before it.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass

from service.errors import InvalidRequestError

_FIELDS = struct.Struct("<BqqqqqddBBB")
_VERSION = 2
_SIGNATURE_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupToken:
    """One lookup that named an entry."""

    cache_id: int
    category_id: int
    entry_id: int
    seq: int
    time_ns: int
    distance: float
    threshold: float
    generation: str
    query_code: bytes
    evidence: bytes = b""

    @property
    def digest(self) -> bytes:
        """16 bytes that tell this lookup from every other."""
        return hashlib.blake2b(_encode(self), digest_size=16).digest()


def sign_token(token: LookupToken, key: bytes) -> str:
    """The token as text."""
    content = _encode(token)
    return base64.urlsafe_b64encode(content + _signature(content, key)).decode()


def read_token(text: str, key: bytes) -> LookupToken:
    """The token that `sign_token` made with the same key. Raises: InvalidRequestError."""
    try:
        raw = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise _invalid() from error
    content, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
    if len(content) < _FIELDS.size or not hmac.compare_digest(signature, _signature(content, key)):
        raise _invalid()
    version, cache_id, category_id, entry_id, seq, time_ns, distance, threshold, *sizes = _FIELDS.unpack_from(
        content
    )
    rest = content[_FIELDS.size :]
    if version != _VERSION or len(rest) != sum(sizes):
        raise _invalid()
    name_size, code_size, _ = sizes
    return LookupToken(
        cache_id=cache_id,
        category_id=category_id,
        entry_id=entry_id,
        seq=seq,
        time_ns=time_ns,
        distance=distance,
        threshold=threshold,
        generation=rest[:name_size].decode(),
        query_code=rest[name_size : name_size + code_size],
        evidence=rest[name_size + code_size :],
    )


def _encode(token: LookupToken) -> bytes:
    generation = token.generation.encode()
    fields = _FIELDS.pack(
        _VERSION,
        token.cache_id,
        token.category_id,
        token.entry_id,
        token.seq,
        token.time_ns,
        token.distance,
        token.threshold,
        len(generation),
        len(token.query_code),
        len(token.evidence),
    )
    return fields + generation + token.query_code + token.evidence


def _signature(content: bytes, key: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")[:_SIGNATURE_BYTES]


def _invalid() -> InvalidRequestError:
    return InvalidRequestError("the lookup token is not one of this cache", reason="INVALID_LOOKUP_TOKEN")
