"""What the index keeps per row and hands back ready to serve: entry id, media type, text, response."""

import struct
from typing import NamedTuple

TEXT_CHARACTERS = 512
"""Longer texts are unknown to a verifier: it reads every word of 16 of them in one lookup."""

_HEADER = struct.Struct("<HH")
_TEXT_SIZE = struct.Struct("<H")
_FACTS = struct.Struct("<qB")
# In the entry id's length; payloads of before there were texts, or facts, never have them.
_HAS_TEXT = 0x8000
_HAS_FACTS = 0x4000
_NAME_SIZE = 0x3FFF
_DEMOTED = 1


class Facts(NamedTuple):
    """What decides whether a row is a hit. create_ms: None: it was packed by a version that did not keep it.
    is_demoted: it answers its own fingerprint alone."""

    create_ms: int | None = None
    is_demoted: bool = False


class Payload(NamedTuple):
    """The parts of one row's payload that are served."""

    entry: str
    content_type: str
    response: bytes


def known_text(text: str) -> str:
    """The text as a verifier gets it: empty where it is blank or longer than TEXT_CHARACTERS."""
    return text if len(text) <= TEXT_CHARACTERS and not text.isspace() else ""


def pack_payload(
    entry: str, content_type: str, response: bytes, *, text: str = "", facts: Facts | None = None
) -> bytes:
    """Both strings' lengths as uint16, the strings in UTF-8, the facts, the text, then the response.

    The facts are there where they are given, with a create time: that as int64 in ms, and flags in a byte.
    The text is there where `known_text` leaves one: its length as uint16 and UTF-8.
    """
    name, media_type, words = entry.encode(), content_type.encode(), known_text(text).encode()
    size, told = len(name), b""
    if facts is not None and facts.create_ms is not None:
        size |= _HAS_FACTS
        told = _FACTS.pack(facts.create_ms, _DEMOTED if facts.is_demoted else 0)
    if words:
        size |= _HAS_TEXT
        told += _TEXT_SIZE.pack(len(words)) + words
    return _HEADER.pack(size, len(media_type)) + name + media_type + told + response


def unpack_payload(payload: bytes) -> Payload:
    """What `pack_payload` packed, without facts and text."""
    name_end, type_end, start = _ends(payload)
    return Payload(
        payload[_HEADER.size : name_end].decode(), payload[name_end:type_end].decode(), payload[start:]
    )


def payload_facts(payload: bytes) -> Facts:
    """What decides whether the row is a hit."""
    name_size, type_size = _HEADER.unpack_from(payload)
    if not name_size & _HAS_FACTS:
        return Facts()
    create_ms, flags = _FACTS.unpack_from(payload, _HEADER.size + (name_size & _NAME_SIZE) + type_size)
    return Facts(create_ms, bool(flags & _DEMOTED))


def response_key(payload: bytes) -> int:
    """Equal for equal responses, within this process."""
    start = _ends(payload).text_end
    return hash(memoryview(payload)[start:])  # as of the bytes, without a copy


def payload_text(payload: bytes) -> str:
    """The text of the row's entry; empty where it is not known."""
    name_size, type_size = _HEADER.unpack_from(payload)
    if not name_size & _HAS_TEXT:
        return ""
    type_end = _HEADER.size + (name_size & _NAME_SIZE) + type_size
    start = type_end + (_FACTS.size if name_size & _HAS_FACTS else 0)
    (text_size,) = _TEXT_SIZE.unpack_from(payload, start)
    start += _TEXT_SIZE.size
    return payload[start : start + text_size].decode()


class _Ends(NamedTuple):
    """Where parts of a payload end: the entry id, the media type, facts and text, after which the response
    is."""

    name_end: int
    type_end: int
    text_end: int


def _ends(payload: bytes) -> _Ends:
    name_size, type_size = _HEADER.unpack_from(payload)
    name_end = _HEADER.size + (name_size & _NAME_SIZE)
    type_end = text_end = name_end + type_size
    if name_size & _HAS_FACTS:
        text_end += _FACTS.size
    if name_size & _HAS_TEXT:
        text_end += _TEXT_SIZE.size + _TEXT_SIZE.unpack_from(payload, text_end)[0]
    return _Ends(name_end, type_end, text_end)


def is_payload_of(payload: bytes, packed: bytes) -> bool:
    """Whether a payload is the packed one, or the same as it was kept before: without facts, text, or both.

    A demoted row is none of before: it was packed anew when it was demoted.
    """
    if payload == packed:
        return True
    facts = payload_facts(packed)
    if facts.is_demoted:
        return False
    parts, text = unpack_payload(packed), payload_text(packed)
    return payload in (
        pack_payload(*parts, text=text),
        pack_payload(*parts, facts=facts),
        pack_payload(*parts),
    )
