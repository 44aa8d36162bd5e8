"""Stores, replacements, repeats, deletions and invalidations of one cache, on both databases."""

import dataclasses
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from store_rows import VECTOR_BYTES, StoreCache, make_cache, new_entry

from service import registry, store
from service.categories import delete_category, update_category
from service.database import reading, writing
from service.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from service.records import Coding, NewEntry, Operation, Selection, StoredEntry
from service.rows import read_entry

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine)


def put(cache: StoreCache, *items: NewEntry, now_ms: int = 0) -> list[StoredEntry]:
    """Store the items in one transaction."""
    return cache.mutate(partial(store.store_entries, items=items), now_ms=now_ms)


def test_each_mutation_gets_the_next_seq_and_one_change(cache: StoreCache) -> None:
    faq = cache.category("faq")
    answers = put(cache, new_entry(faq, "a"), new_entry(faq, "b"))
    cache.mutate(partial(store.delete_entry, name="a"))
    ids = [row for _, _, row in cache.feed()]
    assert [answer.seq for answer in answers] == [1, 2]
    assert [(seq, operation) for seq, operation, _ in cache.feed()] == [
        (1, Operation.UPSERT),
        (2, Operation.UPSERT),
        (3, Operation.DELETE),
    ]
    assert ids[0] == ids[2] < ids[1]


def test_entries_carry_the_seq_of_their_answer(cache: StoreCache) -> None:
    faq = cache.category("faq")
    answers = put(cache, *(new_entry(faq, name) for name in "abc"))
    assert [(record.name, record.seq) for record in cache.entries()] == [
        (answer.name, answer.seq) for answer in answers
    ]


def test_caches_number_their_mutations_apart(cache: StoreCache, shared_engine: Engine) -> None:
    other = make_cache(shared_engine)
    put(cache, new_entry(cache.category("faq"), "a"))
    assert put(other, new_entry(other.category("faq"), "a"))[0].seq == 1


def test_size_counts_response_vector_and_code(cache: StoreCache) -> None:
    faq = cache.category("faq")
    coding = Coding(encoder_id="e", code=bytes(8), label_code=bytes(8))
    put(cache, new_entry(faq, "a", response=b"12345", code_bytes=8, coding=coding))
    assert cache.categories()[faq].size_bytes == 5 + VECTOR_BYTES + 8


def test_an_entry_counts_its_code_before_it_has_one(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a", response=b"12345", code_bytes=8))
    assert cache.categories()[faq].size_bytes == 5 + VECTOR_BYTES + 8


def test_an_entry_without_id_gets_one_of_its_own(cache: StoreCache) -> None:
    faq = cache.category("faq")
    answers = put(cache, new_entry(faq), new_entry(faq))
    assert len({answer.name for answer in answers} - {""}) == 2


def test_a_taken_id_is_refused_and_named(cache: StoreCache) -> None:
    faq, other = cache.category("faq"), cache.category("other")
    put(cache, new_entry(faq, "a"))
    with pytest.raises(AlreadyExistsError, match="entries/a "):
        put(cache, new_entry(other, "a"))


def test_a_batch_with_a_taken_id_stores_nothing(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a"))
    with pytest.raises(AlreadyExistsError):
        put(cache, new_entry(faq, "b"), new_entry(faq, "a"))
    assert (cache.names(), cache.seq()) == (["a"], 1)
    cache.check()


def test_a_batch_with_one_id_twice_stores_nothing(cache: StoreCache) -> None:
    faq = cache.category("faq")
    with pytest.raises(AlreadyExistsError):
        put(cache, new_entry(faq, "a"), new_entry(faq, "a"))
    assert (cache.names(), cache.seq()) == ([], 0)


def test_the_same_fingerprint_in_the_same_scope_and_category_replaces(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a", scope="s", fingerprint="f"))
    put(cache, new_entry(faq, "b", scope="s", fingerprint="f"))
    assert cache.names() == ["b"]
    assert [operation for _, operation, _ in cache.feed()] == [
        Operation.UPSERT,
        Operation.DELETE,
        Operation.UPSERT,
    ]
    cache.check()


def test_a_replacement_may_keep_the_id(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a", fingerprint="f", response=b"old"))
    put(cache, new_entry(faq, "a", fingerprint="f", response=b"new"))
    assert [record.response for record in cache.entries()] == [b"new"]


@pytest.mark.parametrize(
    ("scope", "fingerprint", "category"),
    [("t", "f", "faq"), ("s", "g", "faq"), ("s", "f", "other"), ("s", None, "faq"), ("sf", "", "faq")],
)
def test_another_scope_fingerprint_or_category_replaces_nothing(
    cache: StoreCache, scope: str, fingerprint: str | None, category: str
) -> None:
    ids = {name: cache.category(name) for name in ("faq", "other")}
    put(cache, new_entry(ids["faq"], "a", scope="s", fingerprint="f"))
    put(cache, new_entry(ids[category], "b", scope=scope, fingerprint=fingerprint))
    assert cache.names() == ["a", "b"]


def test_the_last_of_equal_fingerprints_in_one_batch_stays(cache: StoreCache) -> None:
    faq = cache.category("faq")
    answers = put(cache, *(new_entry(faq, name, fingerprint="f") for name in "abc"))
    assert [answer.name for answer in answers] == ["a", "b", "c"]
    assert cache.names() == ["c"]
    cache.check()


def test_replace_entry_takes_the_place_of_the_named_entry(cache: StoreCache) -> None:
    faq, other = cache.category("faq"), cache.category("other")
    put(cache, new_entry(faq, "a"), new_entry(faq, "kept"))
    put(cache, new_entry(other, "b", replace_name="a"))
    assert cache.names() == ["kept", "b"]
    cache.check()


def test_replace_entry_within_one_batch_sees_the_entry_before_it(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a"), new_entry(faq, "b", replace_name="a"))
    assert cache.names() == ["b"]


def test_replace_entry_that_is_gone_is_no_error(cache: StoreCache) -> None:
    put(cache, new_entry(cache.category("faq"), "b", replace_name="gone"))
    assert cache.names() == ["b"]


def test_a_replaced_entry_frees_its_room_before_any_other_leaves(cache: StoreCache) -> None:
    faq = cache.category("faq", max_entries=2)
    put(cache, new_entry(faq, "a"), new_entry(faq, "b"))
    assert put(cache, new_entry(faq, "c", replace_name="b"))[0].evicted_count == 0
    assert cache.names() == ["a", "c"]


def test_a_repeated_request_gives_the_first_answer_and_stores_nothing(cache: StoreCache) -> None:
    faq = cache.category("faq", ttl_ms=500, max_entries=1)
    put(cache, new_entry(faq, "leaves"))
    item = new_entry(faq, request_id="r", request_digest=b"d")
    first = put(cache, item, now_ms=100)
    assert first[0].evicted_count == 1
    assert put(cache, item, now_ms=900) == first
    assert cache.seq() == 3


def test_a_repeat_is_answered_after_its_entry_was_deleted(cache: StoreCache) -> None:
    faq = cache.category("faq")
    item = new_entry(faq, "a", request_id="r", request_digest=b"d")
    first = put(cache, item)
    cache.mutate(partial(store.delete_entry, name="a"))
    assert put(cache, item) == first
    assert cache.names() == []


def test_a_request_id_with_another_entry_is_refused(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a", request_id="r", request_digest=b"d"))
    with pytest.raises(InvalidRequestError) as raised:
        put(cache, new_entry(faq, "b", request_id="r", request_digest=b"e"))
    assert raised.value.reason == "REQUEST_ID_REUSED"
    assert cache.names() == ["a"]


def test_a_request_id_twice_in_one_batch_is_refused(cache: StoreCache) -> None:
    item = new_entry(cache.category("faq"), request_id="r", request_digest=b"d")
    with pytest.raises(InvalidRequestError):
        put(cache, item, item)
    assert cache.seq() == 0


def test_a_request_id_of_another_cache_is_free(cache: StoreCache, shared_engine: Engine) -> None:
    other = make_cache(shared_engine)
    put(cache, new_entry(cache.category("faq"), "a", request_id="r", request_digest=b"d"))
    put(other, new_entry(other.category("faq"), "b", request_id="r", request_digest=b"e"))
    assert other.names() == ["b"]


def test_a_batch_with_one_repeat_answers_in_the_order_of_its_items(cache: StoreCache) -> None:
    faq = cache.category("faq")
    repeat = new_entry(faq, "a", request_id="r", request_digest=b"d")
    put(cache, repeat)
    answers = put(cache, new_entry(faq, "b"), repeat, new_entry(faq, "c"))
    assert [(answer.name, answer.seq) for answer in answers] == [("b", 2), ("a", 1), ("c", 3)]


def test_a_deleted_category_refuses_stores(cache: StoreCache) -> None:
    with pytest.raises(NotFoundError):
        put(cache, new_entry(cache.category("faq") + 1_000_000))


def test_deleting_an_unknown_entry_is_refused(cache: StoreCache) -> None:
    with pytest.raises(NotFoundError, match="entries/gone "):
        cache.mutate(partial(store.delete_entry, name="gone"))


def test_a_deleted_entry_leaves_no_content_behind(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a", tags=("t",), response=b"secret"))
    cache.mutate(partial(store.delete_entry, name="a"))
    put(cache, new_entry(faq, "a"))
    assert [(record.response, record.tags) for record in cache.entries()] == [(b"", ())]


def test_an_import_skips_taken_ids_and_repeats_of_one_id(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a", response=b"kept"))
    items = [new_entry(faq, name, response=body) for name, body in [("a", b"1"), ("b", b"2"), ("b", b"3")]]
    items += [new_entry(faq), new_entry(faq)]
    assert cache.mutate(partial(store.import_entries, items=items)) == 3
    assert {record.name: record.response for record in cache.entries()}.items() >= {
        ("a", b"kept"),
        ("b", b"2"),
    }
    cache.check()


def test_an_import_keeps_times(cache: StoreCache) -> None:
    faq = cache.category("faq", ttl_ms=7)
    item = new_entry(faq, "a", create_ms=5, expire_ms=9_000)
    cache.mutate(partial(store.import_entries, items=[item]), now_ms=1_000)
    assert [(record.create_ms, record.expire_ms) for record in cache.entries()] == [(5, 9_000)]


def test_a_read_sees_what_was_stored(cache: StoreCache) -> None:
    faq = cache.category("faq")
    item = new_entry(
        faq,
        "a",
        scope="s",
        fingerprint="f",
        text="t\N{BEER MUG}",
        labels=("y", "x"),
        tags=("v", "u", "v"),
        source="from",
        embedder_id="m",
        response=b"\x00\xff",
        content_type="text/plain",
    )
    put(cache, item)
    with reading(cache.engine) as connection:
        record = registry.read_cache(connection, cache.name)
        found = read_entry(connection, record, "a", now_ms=0)
    for field in (
        "name",
        "scope",
        "fingerprint",
        "text",
        "labels",
        "source",
        "embedder_id",
        "response",
        "content_type",
    ):
        assert getattr(found, field) == getattr(item, field), field
    assert (found.tags, found.vector) == (("u", "v"), item.vector.tobytes())


def test_a_selection_of_more_ids_than_a_statement_takes_is_answered(cache: StoreCache) -> None:
    put(cache, new_entry(cache.category("faq"), "a"))
    names = (*(f"n{i}" for i in range(70_000)), "a")
    assert cache.mutate(partial(store.invalidate, selection=Selection(names=names))) == 1


def test_invalidation_leaves_other_caches_alone(cache: StoreCache, shared_engine: Engine) -> None:
    other = make_cache(shared_engine)
    put(other, new_entry(other.category("faq"), "a", tags=("t",), source="s"))
    cache.category("faq")
    for selection in (
        Selection(names=("a",)),
        Selection(tags=("t",)),
        Selection(sources=("s",)),
        Selection(category_ids=tuple(other.categories())),
    ):
        assert cache.mutate(partial(store.invalidate, selection=selection)) == 0
    assert other.names() == ["a"]


def test_a_transaction_deletes_nothing_of_another_cache(cache: StoreCache, shared_engine: Engine) -> None:
    other = make_cache(shared_engine)
    put(other, new_entry(other.category("faq"), "a"))
    row_id = other.entries()[0].id
    assert cache.mutate(lambda tx: tx.delete([row_id])) == 0
    assert other.names() == ["a"]
    cache.check()


some = partial(st.lists, max_size=2, unique=True)
rows = st.lists(
    st.tuples(st.integers(0, 1), st.sets(st.sampled_from("tuv"), max_size=2), st.sampled_from("xyz")),
    min_size=1,
    max_size=8,
)


@FEW
@given(
    rows=rows,
    names=some(st.integers(0, 9)),
    category_numbers=some(st.integers(0, 1)),
    tags=some(st.sampled_from("tuvw")),
    sources=some(st.sampled_from("xyz")),
)
def test_invalidation_deletes_what_all_given_selectors_match(
    shared_engine: Engine,
    rows: list[tuple[int, set[str], str]],
    names: list[int],
    category_numbers: list[int],
    tags: list[str],
    sources: list[str],
) -> None:
    cache = make_cache(shared_engine)
    ids = [cache.category("one"), cache.category("two")]
    items = [
        new_entry(ids[number], f"n{i}", tags=tuple(own), source=source)
        for i, (number, own, source) in enumerate(rows)
    ]
    put(cache, *items)
    selection = Selection(
        names=tuple(f"n{number}" for number in names),
        category_ids=tuple(ids[number] for number in category_numbers),
        tags=tuple(tags),
        sources=tuple(sources),
    )

    def matches(item: NewEntry) -> bool:
        return (
            (not names or item.name in selection.names)
            and (not category_numbers or item.category_id in selection.category_ids)
            and (not tags or bool({*item.tags} & {*tags}))
            and (not sources or item.source in sources)
        )

    deleted = cache.mutate(partial(store.invalidate, selection=selection))
    assert deleted == sum(map(matches, items))
    assert cache.names() == [item.name for item in items if not matches(item)]
    cache.check()


ITEM = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["", "a", "b", "c"]),
        "category": st.integers(0, 1),
        "fingerprint": st.sampled_from([None, "f", "g"]),
        "scope": st.sampled_from(["", "s"]),
        "response": st.sampled_from([b"", b"12345678"]),
        "replace_name": st.sampled_from(["", "", "a", "b"]),
        "ttl_ms": st.sampled_from([None, 5]),
    }
)
STEP = st.one_of(
    st.tuples(st.just("store"), st.lists(ITEM, min_size=1, max_size=4)),
    st.tuples(st.just("import"), st.lists(ITEM, min_size=1, max_size=4)),
    st.tuples(st.just("delete"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("expire"), st.integers(1, 3)),
)


@FEW
@given(steps=st.lists(STEP, min_size=1, max_size=8))
def test_after_any_mutations_counters_feed_and_quota_agree_with_the_rows(
    shared_engine: Engine, steps: list[tuple[str, object]]
) -> None:
    cache = make_cache(shared_engine)
    ids = [cache.category("one", max_entries=2), cache.category("two", max_bytes=3 * VECTOR_BYTES)]
    for now_ms, (step, argument) in enumerate(steps):
        try:
            if step == "delete":
                cache.mutate(partial(store.delete_entry, name=argument), now_ms=now_ms)
            elif step == "expire":
                cache.mutate(partial(store.delete_expired, limit=argument), now_ms=now_ms)
            else:
                items = []
                for fields in argument:  # type: ignore[attr-defined]
                    rest = {key: value for key, value in fields.items() if key not in ("category", "name")}
                    items.append(new_entry(ids[fields["category"]], fields["name"], **rest))
                apply = store.store_entries if step == "store" else store.import_entries
                cache.mutate(partial(apply, items=items), now_ms=now_ms)
        except (AlreadyExistsError, NotFoundError):
            pass
        cache.check()
        keys = [
            (record.category_id, record.fingerprint_key)
            for record in cache.entries()
            if record.fingerprint_key is not None
        ]
        assert len(keys) == len(set(keys))


def test_shrinking_a_quota_sees_the_policy_changed_in_the_same_transaction(cache: StoreCache) -> None:
    faq = cache.category("faq")

    def shrink(tx: store.CacheTransaction) -> int:
        store.store_entries(tx, [new_entry(faq, name) for name in "abc"])
        update_category(tx.connection, cache.name, "faq", etag="", changed={"max_entries": 1}, now_ms=0)
        return store.shrink_to_quota(tx, faq)

    assert cache.mutate(shrink) == 2
    cache.check()


def test_an_old_etag_changes_nothing(cache: StoreCache) -> None:
    cache.category("faq")
    with writing(cache.engine) as connection:
        made = update_category(connection, cache.name, "faq", etag="1", changed={"max_entries": 5}, now_ms=0)
    with pytest.raises(ConflictError), writing(cache.engine) as connection:
        update_category(connection, cache.name, "faq", etag="1", changed={"max_entries": 6}, now_ms=0)
    assert cache.categories()[made.id].policy == dataclasses.replace(made.policy, max_entries=5)


def test_deleting_a_category_deletes_its_entries_alone(cache: StoreCache) -> None:
    faq, other = cache.category("faq"), cache.category("other")
    put(cache, new_entry(faq, "a"), new_entry(other, "b"))
    with writing(cache.engine) as connection:
        delete_category(connection, cache.name, "faq", etag="", now_ms=0)
    assert cache.names() == ["b"]
