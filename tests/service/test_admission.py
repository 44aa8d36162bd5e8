"""Which entries a category stores."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from store_rows import StoreCache, make_cache, new_entry

from service import store
from service.admission import Admission, Sightings, admit, request_key
from service.policy import Policy
from service.records import Coding, NewEntry, StoredEntry

PICKY = Policy(second_sighting=True)


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine)


def put(cache: StoreCache, *items: NewEntry, sightings: Sightings) -> list[StoredEntry]:
    """Store what is admitted."""
    judge = partial(admit, sightings=sightings)
    return cache.mutate(partial(store.store_entries, items=items, admit=judge))


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(0.0, "stored"), (0.4, "too_cheap"), (0.5, "stored"), (9.0, "stored")],
)
def test_an_entry_of_known_small_cost_is_not_stored(cost: float, expected: str) -> None:
    item = new_entry(1, "a", cost=cost)
    assert admit(Policy(min_cost=0.5), item, sightings=Sightings()).value == expected


@pytest.mark.parametrize("completion", ["truncated", "failed"])
def test_an_incomplete_response_is_never_stored_nor_seen(completion: str) -> None:
    sightings = Sightings()
    item = new_entry(1, "a", fingerprint="k", completion=completion)
    assert admit(Policy(), item, sightings=sightings) is Admission.INCOMPLETE
    assert admit(PICKY, item, sightings=sightings) is Admission.INCOMPLETE
    whole = new_entry(1, "a", fingerprint="k")
    assert admit(PICKY, whole, sightings=sightings) is Admission.FIRST_SIGHTING
    assert admit(PICKY, whole, sightings=sightings) is Admission.STORED


def test_a_sighting_counts_in_its_category_alone() -> None:
    sightings = Sightings()
    assert admit(PICKY, new_entry(1, "a", fingerprint="k"), sightings=sightings) is Admission.FIRST_SIGHTING
    assert admit(PICKY, new_entry(2, "a", fingerprint="k"), sightings=sightings) is Admission.FIRST_SIGHTING


def test_what_takes_an_entrys_place_needs_no_sighting() -> None:
    item = new_entry(1, "a", fingerprint="k", replace_name="old")
    assert admit(PICKY, item, sightings=Sightings()) is Admission.STORED


def test_two_requests_are_one_by_fingerprint_then_by_code_then_by_vector() -> None:
    coding = Coding(encoder_id="e", code=b"12345678", label_code=None)
    assert request_key(new_entry(1, "a", fingerprint="k")) == request_key(new_entry(1, "b", fingerprint="k"))
    assert request_key(new_entry(1, "a", coding=coding)) == request_key(new_entry(1, "b", coding=coding))
    assert request_key(new_entry(1, "a")) == request_key(new_entry(1, "a"))
    keys = [
        request_key(item)
        for item in (
            new_entry(1, "a", fingerprint="k"),
            new_entry(1, "a", fingerprint="k", scope="s"),
            new_entry(1, "a", coding=coding),
            new_entry(1, "a", coding=coding, scope="s"),
            new_entry(1, "a", coding=coding, modality="image"),
            new_entry(1, "a"),
            new_entry(1, "b"),
        )
    ]
    assert len(set(keys)) == len(keys)


@given(seen=st.lists(st.integers(0, 12), max_size=60))
def test_the_last_requests_are_remembered_and_memory_is_bounded(seen: list[int]) -> None:
    half = 4
    sightings = Sightings(half=half)
    for i, number in enumerate(seen):
        known = sightings.see(1, bytes([number]))
        lately: set[int] = set()
        for earlier in reversed(seen[:i]):  # the last `half` different ones at least
            if len(lately) == half - 1 and earlier not in lately:
                break
            lately.add(earlier)
        assert known or number not in lately
        assert not known or number in seen[:i]
    newer, older = sightings._seen.get(1, (set(), set()))
    assert len(newer) + len(older) <= 2 * half


def test_of_many_categories_the_one_asked_longest_ago_is_forgotten() -> None:
    sightings = Sightings(most=2)
    for category_id in (1, 2, 1, 3):
        sightings.see(category_id, b"k")
    assert [sightings.see(category_id, b"k") for category_id in (1, 3)] == [True, True]
    assert not sightings.see(2, b"k")


def test_what_is_not_admitted_leaves_the_store_as_it_was(cache: StoreCache) -> None:
    faq = cache.category("faq", second_sighting=True, min_cost=0.5, max_entries=1)
    sightings = Sightings()
    first = put(cache, new_entry(faq, "a", fingerprint="k"), sightings=sightings)
    assert [(answer.name, answer.admission) for answer in first] == [("", "first_sighting")]
    assert (cache.names(), cache.seq()) == ([], 0)
    batch = put(
        cache,
        new_entry(faq, "a", fingerprint="k"),
        new_entry(faq, "b", fingerprint="k", cost=0.1),
        new_entry(faq, "c", fingerprint="x"),
        sightings=sightings,
    )
    assert [answer.admission for answer in batch] == ["stored", "too_cheap", "first_sighting"]
    assert cache.names() == ["a"]
    again = put(cache, new_entry(faq, "c", fingerprint="x"), sightings=sightings)
    assert (again[0].admission, again[0].evicted_count) == ("stored", 1)
    cache.check()


def test_a_repeat_of_a_request_is_no_second_sighting(cache: StoreCache) -> None:
    faq = cache.category("faq", second_sighting=True)
    sightings = Sightings()
    item = new_entry(faq, "a", fingerprint="k", request_id="r1", request_digest=bytes(16))
    for _ in range(3):
        assert put(cache, item, sightings=sightings)[0].admission == "first_sighting"
    other = new_entry(faq, "a", fingerprint="k", request_id="r2", request_digest=bytes(16))
    stored = put(cache, other, sightings=sightings)
    assert stored[0].admission == "stored"
    assert put(cache, other, sightings=Sightings()) == stored


def test_imports_are_all_admitted(cache: StoreCache) -> None:
    faq = cache.category("faq", second_sighting=True, min_cost=5.0)
    assert cache.mutate(partial(store.import_entries, items=[new_entry(faq, "a", cost=1.0)])) == 1
