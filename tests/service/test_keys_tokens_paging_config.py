"""Small parts: names and keys, lookup and page tokens, payloads, access counts, configuration."""

import base64
import json
import tomllib
import unicodedata
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import paging, tokens
from service.accesses import Accesses, AccessLog
from service.config import Config, ServerConfig, StoreConfig, load_config, render_config
from service.errors import ConfigurationError, InvalidRequestError
from service.keys import (
    NAME_PATTERN,
    cache_name,
    check_id,
    child_name,
    fingerprint_key,
    normalise_text,
    parse_cache,
    parse_child,
    parse_parent,
    scope_key,
    split_key,
)
from service.payload import pack_payload, unpack_payload
from service.tokens import LookupToken, sign_token

INT64 = st.integers(-(2**63), 2**63 - 1)
SHORT = st.text(max_size=4)
KEY = b"k" * 32
TOKENS = st.builds(
    LookupToken,
    cache_id=INT64,
    category_id=INT64,
    entry_id=INT64,
    seq=INT64,
    time_ns=INT64,
    distance=st.floats(allow_nan=False),
    threshold=st.floats(allow_nan=False),
    generation=st.text(st.characters(codec="ascii"), max_size=32),
    query_code=st.binary(max_size=128),
)
TOKEN = LookupToken(
    cache_id=1,
    category_id=2,
    entry_id=3,
    seq=4,
    time_ns=5,
    distance=0.25,
    threshold=0.5,
    generation="gen-00000001",
    query_code=b"\x01" * 8,
)


@given(text=st.text())
def test_normalising_a_text_twice_changes_nothing_more(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a  b\t\n c ", "a b c", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("Hello", "hello", False),
        ("a b", "ab", False),
        ("a\u00a0b", "a b", True),
    ],
)
def test_texts_are_the_same_up_to_white_space_and_composition(
    one: str,
    other: str,
    same: bool,  # noqa: FBT001
) -> None:
    assert (normalise_text(one) == normalise_text(other)) is same
    assert normalise_text(one) == unicodedata.normalize("NFC", normalise_text(one))


@given(scope=st.text())
def test_a_scope_key_is_zero_for_the_empty_scope_alone(scope: str) -> None:
    assert (scope_key(scope) == 0) is (scope == "")
    assert 0 <= scope_key(scope) < 2**64


@given(
    one=st.tuples(st.text(max_size=4), st.text(max_size=4)),
    other=st.tuples(st.text(max_size=4), st.text(max_size=4)),
)
@example(one=("ab", "c"), other=("a", "bc"))
@example(one=("", "ab"), other=("ab", ""))
def test_fingerprint_keys_are_equal_for_equal_scope_and_fingerprint_alone(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert (fingerprint_key(*one) == fingerprint_key(*other)) is (one == other)


@given(first=st.integers(0, 2**64 - 1), second=st.integers(0, 2**64 - 1))
def test_a_key_splits_into_its_two_words(first: int, second: int) -> None:
    assert split_key(first.to_bytes(8, "little") + second.to_bytes(8, "little")) == (first, second)


@given(cache=st.from_regex(NAME_PATTERN, fullmatch=True), child=st.from_regex(NAME_PATTERN, fullmatch=True))
def test_names_are_parsed_as_they_are_made(cache: str, child: str) -> None:
    assert parse_cache(cache_name(cache)) == cache
    assert parse_child(child_name(cache, "entries", child), "entries") == (cache, child)
    assert parse_parent(cache_name(cache)) == (cache, None)
    assert parse_parent(child_name(cache, "categories", child)) == (cache, child)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "faq",
        "caches",
        "caches/",
        "caches/A",
        "caches/a\n",
        "caches/a/",
        "cache/a",
        "/caches/a",
        "caches/" + "a" * 64,
        "caches/a/entries/b",
        "caches/..",
        "caches/\u0661",
    ],
)
def test_what_is_no_name_of_a_cache_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_cache(name)
    assert raised.value.reason == "INVALID_NAME"


@pytest.mark.parametrize("child", ["", "a b", "a" * 129, "a\n", "a/b", "\u00e9"])
def test_what_is_no_name_of_an_entry_is_refused(child: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_child(f"caches/a/entries/{child}", "entries")


@pytest.mark.parametrize(
    ("child", "collection"), [("A.b:c-d_9", "entries"), ("a" * 128, "entries"), ("a" * 63, "categories")]
)
def test_the_longest_and_strangest_ids_are_taken(child: str, collection: str) -> None:
    assert parse_child(f"caches/a/{collection}/{child}", collection) == ("a", child)


def test_a_refused_id_names_its_field() -> None:
    with pytest.raises(InvalidRequestError, match="cache_id") as raised:
        check_id("Nope", NAME_PATTERN, field="cache_id")
    assert raised.value.metadata == {"field": "cache_id"}


@given(token=TOKENS)
def test_a_lookup_token_is_read_as_it_was_signed(token: LookupToken) -> None:
    assert tokens.read_token(sign_token(token, KEY), KEY) == token


@given(bit=st.integers(0))
def test_a_lookup_token_with_any_bit_changed_is_refused(bit: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(sign_token(TOKEN, KEY)))
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    with pytest.raises(InvalidRequestError):
        tokens.read_token(base64.urlsafe_b64encode(raw).decode(), KEY)


@given(forged=st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_a_forged_lookup_token_is_refused(forged: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        tokens.read_token(forged, KEY)
    assert raised.value.reason == "INVALID_LOOKUP_TOKEN"


@given(size=st.integers(0))
def test_a_cut_lookup_token_is_refused(size: int) -> None:
    text = sign_token(TOKEN, KEY)
    with pytest.raises(InvalidRequestError):
        tokens.read_token(text[: size % len(text)], KEY)


def test_a_lookup_token_of_another_cache_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        tokens.read_token(sign_token(TOKEN, b"another key"), KEY)


def test_a_lookup_token_of_another_version_is_refused() -> None:
    content = bytearray(base64.urlsafe_b64decode(sign_token(TOKEN, KEY))[:-16])
    content[0] += 1
    signed = bytes(content) + tokens._signature(bytes(content), KEY)
    with pytest.raises(InvalidRequestError):
        tokens.read_token(base64.urlsafe_b64encode(signed).decode(), KEY)


@pytest.mark.parametrize("field", [field.name for field in fields(LookupToken)])
def test_lookups_that_differ_in_one_field_have_other_digests(field: str) -> None:
    value = getattr(TOKEN, field)
    other = replace(TOKEN, **{field: value + (b"x" if isinstance(value, bytes) else type(value)(1))})
    assert other.digest != TOKEN.digest
    assert len(other.digest) == 16


@given(listing=st.text(), after=st.text())
def test_a_page_token_is_read_for_its_own_listing_alone(listing: str, after: str) -> None:
    token = paging.make_token(listing, after)
    assert paging.read_token(listing, token) == after
    with pytest.raises(InvalidRequestError):
        paging.read_token(listing + "x", token)


@given(
    forged=st.one_of(
        st.text(min_size=1),
        st.binary(min_size=1).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
        st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
            lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
        ),
    )
)
@example(forged=base64.urlsafe_b64encode(b"[" * 100_000).decode())
@example(forged=base64.urlsafe_b64encode(b'["caches", 3]').decode())
def test_a_forged_page_token_is_refused(forged: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        paging.read_token("caches", forged)
    assert raised.value.reason == "INVALID_PAGE_TOKEN"


def pages(items: list[str], *, size: int) -> list[list[str]]:
    """All pages of a listing."""
    found: list[list[str]] = []
    token = ""
    while not found or token:
        page, token = paging.page_of(items, listing="all", token=token, size=size, key=str)
        found.append(list(page))
    return found


@given(items=st.lists(st.text(max_size=3), unique=True, max_size=12), size=st.integers(1, 13))
def test_pages_are_the_listing_cut_in_order(items: list[str], size: int) -> None:
    found = pages(items, size=size)
    assert [item for page in found for item in page] == items
    assert all(len(page) == size for page in found[:-1])
    assert len(found) == max(1, -(-len(items) // size))


def test_a_listing_goes_on_where_an_item_was_deleted() -> None:
    _, token = paging.page_of("abcd", listing="all", token="", size=2, key=str)
    page, _ = paging.page_of("acd", listing="all", token=token, size=2, key=str)
    assert page == "cd"


def test_a_page_after_an_item_that_never_was_is_refused() -> None:
    token = paging.make_token("all", "m")
    with pytest.raises(InvalidRequestError):
        paging.page_of("zxy", listing="all", token=token, size=2, key=str)


@given(entry=st.text(max_size=128), content_type=st.text(max_size=255), response=st.binary(max_size=64))
def test_a_payload_is_unpacked_as_it_was_packed(entry: str, content_type: str, response: bytes) -> None:
    assert unpack_payload(pack_payload(entry, content_type, response)) == (entry, content_type, response)


def test_accesses_add_up_until_they_are_drained() -> None:
    log = AccessLog(max_entries=10)
    for now_ms in (5, 8):
        log.record(1, 2, outcome="hit_count", entry_id=3, now_ms=now_ms)
    log.record(1, 2, outcome="miss_count", entry_id=None, now_ms=9)
    expected = Accesses(hits={3: (2, 8)}, outcomes=Counter({(2, "hit_count"): 2, (2, "miss_count"): 1}))
    assert (log.drain(), log.drain()) == ({1: expected}, {})


def test_over_the_bound_lookups_count_and_further_entries_do_not() -> None:
    log = AccessLog(max_entries=2)
    for entry_id in (1, 2, 3, 1):
        log.record(7, 8, outcome="hit_count", entry_id=entry_id, now_ms=entry_id)
    assert log.drain() == {7: Accesses(hits={1: (2, 1), 2: (1, 2)}, outcomes=Counter({(8, "hit_count"): 4}))}


def test_restored_accesses_join_what_came_meanwhile() -> None:
    log = AccessLog(max_entries=10)
    log.record(1, 2, outcome="hit_count", entry_id=3, now_ms=9)
    drained = log.drain()[1]
    log.record(1, 2, outcome="hit_count", entry_id=3, now_ms=20)
    log.restore(1, drained)
    assert log.drain() == {1: Accesses(hits={3: (2, 20)}, outcomes=Counter({(2, "hit_count"): 2}))}


def write(path: Path, document: str) -> Path:
    """A configuration file."""
    file = path / "nearhit.toml"
    file.write_text(document, encoding="utf-8")
    return file


def test_without_file_and_variables_there_are_the_defaults() -> None:
    assert load_config(environment={}) == Config()


def test_a_file_sets_what_it_names_alone(tmp_path: Path) -> None:
    file = write(tmp_path, '[server]\nthreads = 3\n[refresh]\nfeed_seconds = 1\n[log]\nlevel = "debug"\n')
    loaded = load_config(file, environment={})
    assert (loaded.server, loaded.refresh.feed_seconds) == (ServerConfig(threads=3), 1.0)
    assert (loaded.log.level, loaded.store) == ("debug", StoreConfig())


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ("[nope]\n", "[nope]"),
        ("server = 3\n", "[server]"),
        ("[server]\nnope = 1\n", "[server] nope"),
        ('[server]\nthreads = "3"\n', "[server] threads"),
        ("[server]\nthreads = true\n", "[server] threads"),
        ("[server]\nthreads = 3.0\n", "[server] threads"),
        ("[server]\nthreads = 0\n", "[server] threads"),
        ("[server]\ngrace_seconds = -1\n", "[server] grace_seconds"),
        ("[server]\ngrace_seconds = nan\n", "[server] grace_seconds"),
        ("[server]\ngrace_seconds = inf\n", "[server] grace_seconds"),
        ('[server]\naddress = "nowhere"\n', "[server] address"),
        ('[server]\naddress = ":80"\n', "[server] address"),
        ('[server]\naddress = "h:65536"\n', "[server] address"),
        ('[server]\naddress = "h:\u00b2"\n', "[server] address"),
        ('[store]\nurl = "mysql://h/d"\n', "[store] url"),
        ('[store]\ndata_dir = ""\n', "[store] data_dir"),
        ('[store]\ndurability = "maybe"\n', "[store] durability"),
        ("[store]\nmax_group_rows = -1\n", "[store] max_group_rows"),
        ("[refresh]\nfeed_seconds = nan\n", "[refresh] feed_seconds"),
        ("[refresh]\nfeed_seconds = inf\n", "[refresh] feed_seconds"),
        ('[embedder]\nmodel = "other"\n', "[embedder] model"),
        ("[update]\nmax_map_drop = 1.5\n", "[update] max_map_drop"),
        ("[update]\nmax_map_drop = nan\n", "[update] max_map_drop"),
        ("[update]\nmax_flips = 2\n", "[update] max_flips"),
        ("[update]\nmax_age_seconds = -1\n", "[update] max_age_seconds"),
        ("[update]\nmax_age_seconds = inf\n", "[update] max_age_seconds"),
        ("[update]\ninbox_max_mib = 0\n", "[update] inbox_max_mib"),
        ("[update]\nmin_verdicts = -1\n", "[update] min_verdicts"),
        ("[update]\ninbox = 1\n", "[update] inbox"),
        ("[search]\nmax_live_encoders = 0\n", "[search] max_live_encoders"),
        ("[search]\nprobe_count = 0\n", "[search] probe_count"),
        ("[search]\nlist_recall = 1.5\n", "[search] list_recall"),
        ("[search]\nlist_recall = nan\n", "[search] list_recall"),
        ("[leases]\nmax_per_category = 0\n", "[leases] max_per_category"),
        ("[leases]\nwaiting_share = 1.0\n", "[leases] waiting_share"),
        ("[leases]\nwaiting_share = nan\n", "[leases] waiting_share"),
        ('[log]\nformat = "xml"\n', "[log] format"),
    ],
)
def test_a_wrong_value_in_the_file_is_refused_by_its_key(tmp_path: Path, document: str, key: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_config(write(tmp_path, document), environment={})
    assert raised.value.key == key
    assert key in str(raised.value)


@pytest.mark.parametrize("content", [b"[server", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "nearhit.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        load_config(file, environment={})
    assert raised.value.key == str(file)


def test_a_variable_goes_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nthreads = 3\nmax_batch = 7\n")
    loaded = load_config(
        file, environment={"NEARHIT_SERVER_THREADS": "5", "NEARHIT_UPDATE_MAX_MAP_DROP": "0.5"}
    )
    assert (loaded.server.threads, loaded.server.max_batch, loaded.update.max_map_drop) == (5, 7, 0.5)


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("NEARHIT_SERVER_THREADS", "many", "NEARHIT_SERVER_THREADS"),
        ("NEARHIT_SERVER_THREADS", "0", "[server] threads"),
        ("NEARHIT_REFRESH_FEED_SECONDS", "", "NEARHIT_REFRESH_FEED_SECONDS"),
        ("NEARHIT_LOG_LEVEL", "loud", "[log] level"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variable: str, value: str, key: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_config(environment={variable: value})
    assert raised.value.key == key


def test_every_key_can_be_set_by_a_variable() -> None:
    for section in fields(Config):
        for key in fields(getattr(Config(), section.name)):
            value = getattr(getattr(Config(), section.name), key.name)
            if isinstance(value, str):
                continue
            variable = f"NEARHIT_{section.name.upper()}_{key.name.upper()}"
            changed: Any = value / 2 if isinstance(value, float) else value + 1
            if isinstance(value, bool):
                changed = not value
            loaded = load_config(environment={variable: str(changed).lower()})
            assert getattr(getattr(loaded, section.name), key.name) == changed, variable


@settings(max_examples=50)
@given(
    rest=st.text(st.characters(codec="utf-8")),
    seconds=st.floats(1e-300, 1e300),
    rows=st.integers(1, 2**62),
)
@example(rest='"\\\n\x00\x7f\U0001f37a\u2028', seconds=1e22, rows=1)
def test_a_rendered_configuration_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rest: str, seconds: float, rows: int
) -> None:
    default = Config()
    config = replace(
        default,
        store=replace(default.store, url=f"sqlite:///{rest}", max_group_rows=rows),
        refresh=replace(default.refresh, feed_seconds=seconds),
    )
    file = write(tmp_path_factory.getbasetemp(), "")
    file.write_bytes(render_config(config).encode())
    assert load_config(file, environment={}) == config


def test_a_rendered_configuration_holds_every_key() -> None:
    document = tomllib.loads(render_config(Config()))
    assert {section: set(keys) for section, keys in document.items()} == {
        section.name: {key.name for key in fields(getattr(Config(), section.name))}
        for section in fields(Config)
    }
