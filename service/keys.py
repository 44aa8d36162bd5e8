"""Names and keys: what identifies a resource, a scope and a request."""

import hashlib
import re
import unicodedata

from service.errors import InvalidRequestError

NAME_PATTERN = re.compile(r"[a-z0-9_-]{1,63}")
ENTRY_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MODALITY_PATTERN = re.compile(r"[a-z0-9_]{1,32}")
FINGERPRINT_BYTES = 1024


def normalise_text(text: str) -> str:
    """The text whose equality makes two requests the same: Unicode NFC, white space folded, case kept."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_fingerprint(text: str) -> str:
    """The fingerprint of a request that is this text: the text normalised, or a digest of one that is longer
    than a fingerprint may be. Empty for a blank text."""
    normalised = normalise_text(text)
    if len(normalised.encode()) <= FINGERPRINT_BYTES:
        return normalised
    return "blake2b:" + hashlib.blake2b(normalised.encode(), digest_size=32).hexdigest()


def scope_key(scope: str) -> int:
    """64-bit hash of a scope, as the index filters by it; 0 for the empty scope.

    BLAKE2b: two of a million scopes in one cache collide with a chance of 3e-8.
    """
    if not scope:
        return 0
    return int.from_bytes(hashlib.blake2b(scope.encode(), digest_size=8).digest(), "little") or 1


def fingerprint_key(scope: str, fingerprint: str) -> bytes:
    """16-byte exact key of a request within its scope."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(scope.encode()).to_bytes(4, "little"))
    digest.update(scope.encode())
    digest.update(fingerprint.encode())
    return digest.digest()


def split_key(key: bytes) -> tuple[int, int]:
    """The two uint64 words of a 16-byte key."""
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


def parse_cache(name: str) -> str:
    """The {cache} of caches/{cache}. Raises: InvalidRequestError."""
    return _parse(name, ("caches",))[0]


def parse_child(name: str, collection: str) -> tuple[str, str]:
    """The {cache} and {child} of caches/{cache}/<collection>/{child}. Raises: InvalidRequestError."""
    cache, child = _parse(name, ("caches", collection))
    return cache, child


def parse_parent(name: str) -> tuple[str, str | None]:
    """The {cache}, and the {category} if there is one, of a list's parent. Raises: InvalidRequestError."""
    if name.count("/") >= 2:
        return parse_child(name, "categories")
    return parse_cache(name), None


def check_id(value: str, pattern: re.Pattern[str], *, field: str) -> str:
    """`value` if it is an id of that pattern. Raises: InvalidRequestError."""
    if not pattern.fullmatch(value):
        raise InvalidRequestError(
            f"{field}: {value!r} is not an id of the form {pattern.pattern}",
            reason="INVALID_NAME",
            field=field,
        )
    return value


def cache_name(cache: str) -> str:
    """caches/{cache}."""
    return f"caches/{cache}"


def child_name(cache: str, collection: str, child: str) -> str:
    """caches/{cache}/<collection>/{child}."""
    return f"caches/{cache}/{collection}/{child}"


def _parse(name: str, collections: tuple[str, ...]) -> list[str]:
    parts = name.split("/")
    ids = parts[1::2]
    form = "/".join(f"{collection}/{{{collection}}}" for collection in collections)
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        raise InvalidRequestError(f"{name!r} is not a name of the form {form}", reason="INVALID_NAME")
    for collection, part in zip(collections, ids, strict=True):
        pattern = ENTRY_PATTERN if collection == "entries" else NAME_PATTERN
        if not pattern.fullmatch(part):
            raise InvalidRequestError(f"{name!r} is not a name of the form {form}", reason="INVALID_NAME")
    return ids
