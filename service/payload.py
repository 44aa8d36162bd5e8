"""What the index keeps per row and hands back ready to serve: entry id, media type, text, response."""

import struct
from typing import NamedTuple

TEXT_CHARACTERS = 512
"""Longer texts are unknown to a verifier: it reads every word of 16 of them in one lookup."""

_HEADER = struct.Struct("<HH")
_TEXT_SIZE = struct.Struct("<H")
_HAS_TEXT = 0x8000  # in the entry id's length; payloads of before there were texts never have it


class Payload(NamedTuple):
    """The parts of one row's payload that are served."""

    entry: str
    content_type: str
    response: bytes


def known_text(text: str) -> str:
    """The text as a verifier gets it: empty where it is blank or longer than TEXT_CHARACTERS."""
    return text if len(text) <= TEXT_CHARACTERS and not text.isspace() else ""


def pack_payload(entry: str, content_type: str, response: bytes, *, text: str = "") -> bytes:
    """Both strings' lengths as uint16, the strings in UTF-8, the text, then the response.

    The text is there where `known_text` leaves one: its length as uint16 and UTF-8.
    """
    name, media_type, words = entry.encode(), content_type.encode(), known_text(text).encode()
    if not words:
        return _HEADER.pack(len(name), len(media_type)) + name + media_type + response
    header = _HEADER.pack(len(name) | _HAS_TEXT, len(media_type))
    return header + name + media_type + _TEXT_SIZE.pack(len(words)) + words + response


def unpack_payload(payload: bytes) -> Payload:
    """What `pack_payload` packed, without the text."""
    name_size, type_size = _HEADER.unpack_from(payload)
    name_end = _HEADER.size + (name_size & ~_HAS_TEXT)
    type_end = name_end + type_size
    start = type_end
    if name_size & _HAS_TEXT:
        start += _TEXT_SIZE.size + _TEXT_SIZE.unpack_from(payload, type_end)[0]
    return Payload(
        payload[_HEADER.size : name_end].decode(), payload[name_end:type_end].decode(), payload[start:]
    )


def payload_text(payload: bytes) -> str:
    """The text of the row's entry; empty where it is not known."""
    name_size, type_size = _HEADER.unpack_from(payload)
    if not name_size & _HAS_TEXT:
        return ""
    type_end = _HEADER.size + (name_size & ~_HAS_TEXT) + type_size
    start = type_end + _TEXT_SIZE.size
    (text_size,) = _TEXT_SIZE.unpack_from(payload, type_end)
    return payload[start : start + text_size].decode()


def is_payload_of(payload: bytes, packed: bytes) -> bool:
    """Whether a payload is the packed one, or the same without its text, as it was kept before."""
    return payload == packed or payload == pack_payload(*unpack_payload(packed))
