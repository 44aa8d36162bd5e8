"""Scope and fingerprint of a chat completion, the same from every client: the rule of KEYS.md.

Standard library alone. `keys_vectors.json` holds what a client in another language must give.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

VERSION = "nh1"
"""Begins every scope: keys of another rule never meet these."""

FINGERPRINT_BYTES = 1024
"""Over which a fingerprint is a digest."""

TEXT_BYTES = 64 * 1024
"""Of the longest question that a server takes."""

NUMBER_LIMIT = 2**53
"""Below which, either way, every integer is a double: numbers beyond are not the same in every client."""

MOST_DEPTH = 64
"""Of values within values."""

WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
"""Parameters that change how an answer is sent or billed, not what it says: they are in no scope."""

_TEXT_PARTS = frozenset({"text", "input_text"})
_SYSTEM_ROLES = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKeys:
    """What a lookup and a store name of a request; text: what is to be embedded, as it was asked."""

    scope: str
    fingerprint: str
    text: str


def request_keys(
    messages: Sequence[Mapping[str, object]],
    *,
    model: str,
    tools: Sequence[object] | None = None,
    response_format: object = None,
    parameters: Mapping[str, object] | None = None,
    with_attachments: bool = False,
) -> RequestKeys | None:
    """The keys of a request in the manner of chat completions; None: it is not to be cached.

    Not cached is what does not end in a question of the user: no messages, another role at the end, no text,
    only tool results; a text of over 64 KiB or with NUL, which no server takes; a question with parts that
    are not text, unless `with_attachments` puts those into the scope.

    messages: {"role", "content", ...}; content a string or a list of parts. parameters: of sampling, such as
    temperature; those of WITHOUT_EFFECT are left out.
    Raises: ValueError: what is not of this form, or not JSON (NaN, infinity, numbers of 2**53 or more either
    way, lone surrogates, two keys that NFC makes one).
    """
    if not isinstance(model, str) or not model:
        raise ValueError("a request names its model")
    if not isinstance(parameters or {}, Mapping):
        raise ValueError("parameters are an object")
    if not isinstance(tools or [], Sequence) or isinstance(tools, str | bytes):
        raise ValueError("tools are a list")
    turns = [_turn(message) for message in messages]
    if not turns or turns[-1]["role"] != "user":
        return None
    last = turns.pop()
    parts = _parts(last)
    texts = [str(part["text"]) for part in parts if _is_text(part)]
    text = "\n".join(texts)
    size_bytes = len(_encoded(text))
    if not normalise_text(text) or size_bytes > TEXT_BYTES or "\0" in text:
        return None
    if len(texts) < len(parts) and not with_attachments:
        return None
    system = 0
    while system < len(turns) and turns[system]["role"] in _SYSTEM_ROLES:
        system += 1
    document: dict[str, object] = {
        "version": VERSION,
        "model": model,
        "system": turns[:system],
        "history": turns[system:],
        # The question less its words: those are in the fingerprint, and may differ within the threshold.
        "turn": {**last, "content": [_without_text(part) for part in parts]},
    }
    if tools:
        document["tools"] = tools
    if response_format is not None:
        document["response_format"] = response_format
    given = {
        name: value
        for name, value in (parameters or {}).items()
        if value is not None and name not in WITHOUT_EFFECT
    }
    if given:
        document["parameters"] = given
    digest = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    return RequestKeys(scope=f"{VERSION}:{digest}", fingerprint=text_fingerprint(text), text=text)


def canonical_json(value: object) -> str:
    """The one form of a JSON value: RFC 8785, with every string in Unicode NFC.

    Keys are sorted by UTF-16 code units, there is no white space, numbers are as ECMAScript writes doubles.
    Raises: ValueError: as request_keys.
    """
    return _canonical(value, depth=0)


def normalise_text(text: str) -> str:
    """The text whose equality makes two questions the same: Unicode NFC, white space folded, case kept."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_fingerprint(text: str) -> str:
    """The fingerprint that a server makes of a text; empty for a blank one."""
    normalised = normalise_text(text)
    encoded = _encoded(normalised)
    if len(encoded) <= FINGERPRINT_BYTES:
        return normalised
    return "blake2b:" + hashlib.blake2b(encoded, digest_size=32).hexdigest()


def _turn(message: Mapping[str, object]) -> dict[str, object]:
    """A message with its content as a list of parts, without members that are null."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a message is an object, not {type(message).__name__}")
    turn = {key: value for key, value in message.items() if value is not None}
    if not isinstance(turn.get("role"), str):
        raise ValueError("a message has a role")
    content = turn.get("content", [])
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError("the content of a message is a string or a list of parts")
    turn["content"] = [{key: value for key, value in part.items() if value is not None} for part in content]
    return turn


def _parts(turn: Mapping[str, object]) -> list[Mapping[str, object]]:
    content = turn["content"]
    assert isinstance(content, list)  # as _turn makes it
    return content


def _is_text(part: Mapping[str, object]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind in _TEXT_PARTS and isinstance(part.get("text"), str)


def _without_text(part: Mapping[str, object]) -> Mapping[str, object]:
    if not _is_text(part):
        return part
    return {key: value for key, value in part.items() if key != "text"}


def _canonical(value: object, *, depth: int) -> str:
    if depth > MOST_DEPTH:
        raise ValueError(f"values lie more than {MOST_DEPTH} deep in each other")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        members: dict[str, str] = {}
        for key, member in value.items():
            if not isinstance(key, str):
                raise ValueError(f"keys of objects are strings, not {type(key).__name__}")
            name = unicodedata.normalize("NFC", key)
            if name in members:
                raise ValueError(f"two keys of an object are {name!r}")
            members[name] = f"{_quoted(name)}:{_canonical(member, depth=depth + 1)}"
        return "{" + ",".join(members[name] for name in sorted(members, key=_utf16)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return "[" + ",".join(_canonical(item, depth=depth + 1) for item in value) + "]"
    raise ValueError(f"{type(value).__name__} is not of JSON")


def _quoted(text: str) -> str:
    normalised = unicodedata.normalize("NFC", text)
    _encoded(normalised)
    return json.dumps(normalised, ensure_ascii=False)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half of a surrogate pair") from error


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be")


def _number(value: float) -> str:
    """A number below 2**53 as ECMAScript's Number::toString writes the double."""
    if not abs(value) < NUMBER_LIMIT:  # nor NaN
        raise ValueError(f"{value} is not a number within 2**53")
    number = float(value)
    if not number:
        return "0"
    sign = "-" if number < 0 else ""
    # repr gives the shortest digits that are read back as the same double, as ECMAScript asks for.
    _, digits, exponent = Decimal(repr(abs(number))).normalize().as_tuple()
    assert isinstance(exponent, int)  # it is finite
    shown, point = "".join(map(str, digits)), len(digits) + exponent
    if len(shown) <= point:
        return sign + shown + "0" * (point - len(shown))
    if point > 0:
        return f"{sign}{shown[:point]}.{shown[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{shown}"
    mantissa = shown if len(shown) == 1 else f"{shown[0]}.{shown[1:]}"
    return f"{sign}{mantissa}e{point - 1:+d}"
