"""Keys of chat completions: the vectors, what must not change them, and what must."""

import json
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nearhit.keys import TEXT_BYTES, canonical_json, request_keys, text_fingerprint

from service.embedding import default_fingerprint

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
PACKAGE = Path(__file__).parents[2] / "protos" / "nearhit"
VECTORS = json.loads((PACKAGE / "keys_vectors.json").read_text())
WHITE_SPACE = [
    chr(code)
    for first, last in (
        (0x09, 0x0D),
        (0x1C, 0x20),
        (0x85, 0x85),
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (0x205F, 0x205F),
        (0x3000, 0x3000),
    )
    for code in range(first, last + 1)
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
NUMBER = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(
    lambda text: unicodedata.normalize("NFC", text)
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": TEXT},
    optional={"name": TEXT, "tool_calls": st.lists(JSON, max_size=2)},
)
REQUEST = st.fixed_dictionaries(
    {
        "messages": st.builds(
            lambda before, question: [*before, {"role": "user", "content": question}],
            st.lists(MESSAGE, max_size=3),
            WORDS,
        ),
        "model": TEXT.filter(bool),
    },
    optional={
        "tools": st.lists(JSON, max_size=2),
        "response_format": JSON,
        "parameters": st.dictionaries(st.sampled_from(["temperature", "top_p", "seed", "stop"]), JSON),
    },
)


def user(content: object, **members: object) -> dict[str, object]:
    """A message of the user."""
    return {"role": "user", "content": content, **members}


def keys_of(request: dict[str, Any]) -> tuple[str, str] | None:
    """Scope and fingerprint."""
    keys = request_keys(**request)
    return None if keys is None else (keys.scope, keys.fingerprint)


def rewritten(value: Any, draw: Any) -> Any:
    """The same JSON value in another form: keys in another order, decomposed letters, 1 as 1.0."""
    if isinstance(value, str):
        return unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), value)
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {rewritten(key, draw): rewritten(value[key], draw) for key in keys}
    if isinstance(value, list):
        return [rewritten(item, draw) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda vector: vector["name"])
def test_every_client_makes_these_keys(vector: dict[str, Any]) -> None:
    if vector.get("error"):
        with pytest.raises(ValueError):
            request_keys(**vector["request"])
        return
    keys = request_keys(**vector["request"])
    made = keys and {"scope": keys.scope, "fingerprint": keys.fingerprint, "text": keys.text}
    assert made == vector["keys"]
    if keys is not None:  # what was digested is in its one form already
        assert canonical_json(json.loads(vector["canonical"])) == vector["canonical"]


@pytest.mark.parametrize("vector", VECTORS["numbers"], ids=lambda vector: vector["bits"])
def test_every_client_writes_these_numbers(vector: dict[str, Any]) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(vector["bits"]))
    if vector.get("error"):
        with pytest.raises(ValueError, match="not a number"):
            canonical_json(number)
    else:
        assert canonical_json(number) == vector["text"]


@pytest.mark.parametrize("vector", VECTORS["fingerprints"], ids=lambda vector: ascii(vector["text"][:8]))
def test_every_client_makes_these_fingerprints(vector: dict[str, str]) -> None:
    assert text_fingerprint(vector["text"]) == vector["fingerprint"]


@UNTIMED
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_fingerprint_is_the_one_that_a_server_makes(text: str) -> None:
    assert text_fingerprint(text) == default_fingerprint(text, modality="text")


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
@pytest.mark.parametrize("size_bytes", [1024, 1026, 64 * 1024])
def test_fingerprint_of_a_long_text_is_the_one_that_a_server_makes(letter: str, size_bytes: int) -> None:
    text = letter * (size_bytes // len(letter.encode()))
    assert text_fingerprint(text) == default_fingerprint(text, modality="text")


def test_white_space_is_what_the_rule_lists() -> None:
    assert [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()] == WHITE_SPACE


@UNTIMED
@given(NUMBER)
def test_a_number_is_read_back_as_it_was(number: float) -> None:
    assert float(canonical_json(number)) == float(number)


@UNTIMED
@given(REQUEST, st.data())
def test_equal_requests_in_another_form_have_equal_keys(request: dict[str, Any], data: st.DataObject) -> None:
    known = keys_of(request)
    assume(known is not None)
    other = rewritten(request, data.draw)
    question = other["messages"][-1]["content"]
    blank = data.draw(st.lists(st.sampled_from(WHITE_SPACE), max_size=2).map("".join))
    folded = data.draw(st.sampled_from(WHITE_SPACE)).join(question.split())
    other["messages"][-1] = user([{"text": blank + folded + blank, "type": "text"}], name=None)
    other["parameters"] = {"stream": True, "max_tokens": None, **other.get("parameters", {})}
    assert keys_of({key: other[key] for key in reversed(other)}) == known


def changed(request: dict[str, Any], what: str) -> dict[str, Any]:
    """The request with another value of one part of it."""
    before, question = request["messages"][:-1], request["messages"][-1]
    other = {"role": "system", "content": "another"}
    return {
        "model": {**request, "model": request["model"] + "x"},
        "system": {**request, "messages": [other, *before, question]},
        "history": {**request, "messages": [*before, {**other, "role": "assistant"}, question]},
        "space": {
            **request,
            "messages": [*({**own, "content": own["content"] + " "} for own in before), question],
        },
        "tools": {**request, "tools": [*request.get("tools", []), {"name": "f"}]},
        "format": {**request, "response_format": {"was": request.get("response_format")}},
        "parameters": {**request, "parameters": {**request.get("parameters", {}), "top_k": 1}},
        "sender": {**request, "messages": [*before, {**question, "name": "u"}]},
    }[what]


@UNTIMED
@given(
    REQUEST,
    st.sampled_from(["model", "system", "history", "space", "tools", "format", "parameters", "sender"]),
)
def test_any_other_circumstance_is_another_scope(request: dict[str, Any], what: str) -> None:
    assume(what != "space" or len(request["messages"]) > 1)
    first, second = request_keys(**request), request_keys(**changed(request, what))
    assert first is not None and second is not None
    assert first.scope != second.scope
    assert first.fingerprint == second.fingerprint


@UNTIMED
@given(WORDS, WORDS)
def test_another_question_is_another_fingerprint_of_the_same_scope(first: str, second: str) -> None:
    one, other = (request_keys([user(text)], model="m") for text in (first, second))
    assert one is not None and other is not None
    assert one.scope == other.scope
    equal = unicodedata.normalize("NFC", first).split() == unicodedata.normalize("NFC", second).split()
    assert (one.fingerprint == other.fingerprint) == equal


def test_attachments_are_part_of_the_scope_where_they_are_asked_for() -> None:
    def asked(url: str) -> str | None:
        parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        keys = request_keys([user(parts)], model="m", with_attachments=True)
        return keys and keys.scope

    assert len({asked("a"), asked("b"), asked("a"), None}) == 3


@pytest.mark.parametrize(("size_bytes", "is_cached"), [(TEXT_BYTES, True), (TEXT_BYTES + 1, False)])
def test_a_text_that_no_server_takes_has_no_keys(size_bytes: int, is_cached: bool) -> None:  # noqa: FBT001
    assert (request_keys([user("x" * size_bytes)], model="m") is not None) == is_cached


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -(2**53),
        "\ud800",
        {"\udc00": 1},
        {1: 2},
        b"bytes",
        {1, 2},
        {"\u00e9": 1, "e\u0301": 1},
    ],
    ids=ascii,
)
def test_what_is_not_json_has_no_scope(value: object) -> None:
    for tools in ([value], [{"deep": [value]}]):
        with pytest.raises(ValueError):
            request_keys([user("x")], model="m", tools=tools)


def test_values_may_lie_only_so_deep() -> None:
    value: object = 1
    for _ in range(64):
        value = [value]
    assert canonical_json(value) == "[" * 64 + "1" + "]" * 64
    with pytest.raises(ValueError, match="deep"):
        canonical_json([value])


@pytest.mark.parametrize(
    "messages",
    [["x"], [{"role": 1}], [user(7)], [user(["x"])], [user("\ud800")], [{"content": "x"}]],
    ids=ascii,
)
def test_what_is_no_message_is_an_error(messages: Any) -> None:
    with pytest.raises(ValueError):
        request_keys(messages, model="m")


def test_keys_need_the_standard_library_alone() -> None:
    # -S: without installed packages. The file alone: its package imports the client.
    program = "import runpy, sys; assert 'request_keys' in runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-I", "-S", "-c", program, str(PACKAGE / "keys.py")]
    subprocess.run(command, check=True)


def test_a_part_whose_kind_is_no_string_is_no_text() -> None:
    odd = [{"role": "user", "content": [{"type": ["text"], "text": "a"}]}]
    assert request_keys(odd, model="m") is None


@pytest.mark.parametrize("given", [{"parameters": [1]}, {"tools": 5}, {"tools": "search"}])
def test_circumstances_of_another_form_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are"):
        request_keys([{"role": "user", "content": "a"}], model="m", **given)
