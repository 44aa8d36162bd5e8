"""Responses that are computed for misses, compared with what the misses had found; what verdicts do to what
was not served."""

from functools import partial
from typing import Any

import pytest
from forgotten_rows_at_work import forget
from judged_lookups import JUDGE, drop_category, features_at
from sqlalchemy import Engine, select
from store_rows import StoreCache, make_cache, new_entry

from service import store
from service.database import reading
from service.evidence import NO_SKETCH, Evidence, pack_evidence
from service.judging import compare_responses, record_feedback, verdict_columns
from service.records import NewEntry
from service.tables import entries, feedback
from service.tokens import LookupToken


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of its own."""
    return make_cache(shared_engine)


def stored(cache: StoreCache, category_id: int) -> int:
    """The row id of an entry "found" with the response "one"."""
    item = new_entry(category_id, "found", response=b"one")
    cache.mutate(partial(store.store_entries, items=[item]))
    return next(row.id for row in cache.entries() if row.name == "found")


def token_of(category_id: int, entry_id: int, *, served: bool = False, evidence: bytes | None = None) -> Any:
    """Of a lookup that found this entry."""
    known = Evidence(was_served=served, judge=JUDGE, sketch=NO_SKETCH, features=features_at(0.1))
    return LookupToken(
        cache_id=1,
        category_id=category_id,
        entry_id=entry_id,
        seq=1,
        time_ns=entry_id,
        distance=0.1,
        threshold=0.5,
        generation="",
        query_code=b"",
        evidence=pack_evidence(known) if evidence is None else evidence,
    )


def compare(cache: StoreCache, *computed: tuple[LookupToken | None, NewEntry]) -> list[tuple[str, bool]]:
    """The verdicts that there are afterwards, and whether they have a query."""
    cache.mutate(partial(compare_responses, computed=computed))
    columns = (feedback.c.verdict, feedback.c.query_vector)
    with reading(cache.engine) as connection:
        found = connection.execute(
            select(*columns).where(feedback.c.cache_id == cache.id).order_by(feedback.c.id)
        )
        return [(row.verdict, row.query_vector is not None) for row in found]


def is_demoted(cache: StoreCache, entry_id: int) -> bool:
    with reading(cache.engine) as connection:
        query = select(entries.c.demote_ms).where(entries.c.id == entry_id)
        return connection.execute(query).scalar() is not None


@pytest.mark.parametrize(("response", "verdict"), [(b"one", "right"), (b"two", "wrong")])
def test_an_equal_response_says_that_what_was_found_is_right(
    cache: StoreCache, response: bytes, verdict: str
) -> None:
    faq = cache.category("faq", compare_responses=True)
    entry_id = stored(cache, faq)
    computed = new_entry(faq, "computed", response=response)
    token = token_of(faq, entry_id)
    assert compare(cache, (token, computed)) == [(verdict, False)]  # the query is farther than the token says
    assert compare(cache, (token, computed)) == [(verdict, False)]  # a lookup is judged once
    assert not is_demoted(cache, entry_id)


def test_nothing_is_compared_where_it_is_not_asked_for_or_not_known(cache: StoreCache) -> None:
    asks, other = cache.category("asks", compare_responses=True), cache.category("other")
    entry_id = stored(cache, asks)
    computed = new_entry(asks, "computed", response=b"two")
    gone = cache.category("gone", compare_responses=True)
    drop_category(cache, "gone")
    for token in (
        None,
        token_of(other, entry_id),
        token_of(gone, entry_id),
        token_of(asks, entry_id, served=True),
        token_of(asks, entry_id, evidence=b""),
        token_of(asks, entry_id, evidence=b"damaged"),
        token_of(asks, entry_id + 1_000_000),
    ):
        assert compare(cache, (token, computed)) == []


def test_an_entry_of_another_cache_or_a_forgotten_one_is_not_compared_with(cache: StoreCache) -> None:
    faq, elsewhere = cache.category("faq", compare_responses=True), make_cache(cache.engine)
    foreign = stored(elsewhere, elsewhere.category("faq"))
    computed = new_entry(faq, "computed", response=b"two")
    assert compare(cache, (token_of(faq, foreign), computed)) == []
    entry_id = stored(cache, faq)
    forget(cache, names=["found"])
    assert compare(cache, (token_of(faq, entry_id), computed)) == []


def test_a_wrong_verdict_demotes_what_was_served_alone(cache: StoreCache) -> None:
    faq = cache.category("faq", on_wrong="demote")
    entry_id = stored(cache, faq)

    def record(verdict: str, *, number: int, **told: Any) -> None:
        columns = verdict_columns(token_of(faq, entry_id, **told), verdict)
        values = {**columns, "lookup_digest": number.to_bytes(16, "little")}
        cache.mutate(partial(record_feedback, values=values))

    record("wrong", number=1)
    assert not is_demoted(cache, entry_id)
    record("wrong", number=2, served=True)
    assert is_demoted(cache, entry_id)
    record("right", number=3)
    assert is_demoted(cache, entry_id)
    record("right", number=4, served=True)
    assert not is_demoted(cache, entry_id)
    record("wrong", number=5, evidence=b"")  # of a program that told only what was served
    assert is_demoted(cache, entry_id)
